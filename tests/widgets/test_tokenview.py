from __future__ import annotations

import pytest

from minserve.request import Output
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import tokenview
from widgets.pieces import pieces
from widgets.tokenview import TokenKind, TokenMark, TokenView, kinds_at, token_marks, token_view


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_dir("minserve/zoo/base")
    assert found is not None
    return found


def outputs(trace: RunTrace, name: str) -> list[int]:
    return [
        token
        for step in trace.steps
        for part in step.requests
        if part.request_id == name
        for token in part.new_token_ids
    ]


def test_marks_are_the_requests_tokens_in_order(tokenizer: Tokenizer) -> None:
    trace = runs.echo_run()
    prompt = [1 + (7 + place) % 90 for place in range(11)]
    marks = token_marks(trace, tokenizer, prompt, request="request-1")
    new = outputs(trace, "request-1")
    assert [mark.kind for mark in marks] == ["prefilled"] * 11 + ["decoded"] * len(new)
    whole = "".join(mark.text for mark in marks)
    assert whole == tokenizer.decode([*prompt, *new], skip_special_tokens=False)


def test_a_prompt_appears_chunk_by_chunk_then_tokens_one_by_one() -> None:
    trace = runs.echo_run()
    marks = token_marks(trace, None, list(range(1, 12)), request="request-1")
    computed = 0
    for index, step in enumerate(trace.steps):
        parts = [part for part in step.requests if part.request_id == "request-1"]
        computed += sum(part.num_tokens for part in parts)
        kinds = [kind for _, kind in kinds_at(marks, index)]
        assert kinds.count("prefilled") == min(11, computed)
        assert kinds.count("pending") == 11 - min(11, computed)
        assert kinds.count("decoded") == max(0, computed - 10)


def test_a_token_is_computed_again_during_that_step_only() -> None:
    trace = runs.preempting_run()
    again = {}
    for index, step in enumerate(trace.steps):
        for part in step.requests:
            if part.num_recomputed:
                again[part.request_id, index] = part.num_recomputed
    for (name, index), count in again.items():
        marks = token_marks(trace, None, request=name)
        kinds = [kind for _, kind in kinds_at(marks, index)]
        assert kinds.count("recomputed") == count
        assert "recomputed" not in [kind for _, kind in kinds_at(marks, None)]


def test_a_skipped_beginning_was_cached() -> None:
    # No engine skips a prefix yet: the record of one that did.
    from dataclasses import replace

    trace = runs.with_cache()
    first = trace.steps[0]
    part = replace(first.requests[0], start=4, num_tokens=2)
    steps = (replace(first, requests=(part,)), *trace.steps[1:])
    marks = token_marks(replace(trace.snapshot(), steps=steps), None, list(range(6)))
    assert [mark.kind for mark in marks][:7] == ["cached"] * 4 + ["prefilled"] * 2 + ["decoded"]


def test_without_the_prompt_its_length_is_shown() -> None:
    marks = token_marks(runs.with_cache(), None)
    assert [mark.text for mark in marks[:6]] == ["·"] * 6


def test_another_requests_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens, and the one given has 3"):
        token_marks(runs.with_cache(), None, [1, 2, 3])


def test_an_output_brings_its_prompt(tokenizer: Tokenizer) -> None:
    output = Output("request-0", None, (1, 2, 3, 4, 5, 6), ())
    assert token_marks(runs.with_cache(), tokenizer, output)[3].text == tokenizer.decode([4])


def test_the_view_is_told_in_words_and_escaped() -> None:
    marks = [
        TokenMark("a <b>", "prefilled", 0, 0, 0.1),
        TokenMark("\n", "accepted", 1, 1, 0.2, shown_from=1),
        TokenMark("no", "rejected", 2, 1, 0.2, shown_from=1),
    ]
    view = TokenView(marks, title="a < b")
    page = view.html()
    assert "a &lt;b&gt;" in page and "<b>a &lt; b</b>" in page
    assert "line-through" in page and "underline double" in page
    assert view.counts() == {"prefilled": 1, "accepted": 1, "rejected": 1}
    assert view.alt() == (
        "Text of 3 tokens: 1 prefilled, 1 drafted and accepted, 1 drafted and rejected."
    )
    assert view.counts(0) == {"prefilled": 1}


def test_chapters_add_kinds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenview, "KINDS", dict(tokenview.KINDS))
    kind = tokenview.register_kind(TokenKind("exit", "left early", "#123456", "overline"))
    view = TokenView([TokenMark("x", "exit", 0, 0)], kinds=tokenview.KINDS)
    assert kind.label in view.html() and "overline" in view.html()
    unknown = TokenView([TokenMark("x", "dreamt", 0, 0)])
    assert "dreamt" in unknown.html()


def test_no_two_kinds_look_alike_without_colour() -> None:
    lines = [kind.line for kind in tokenview.KINDS.values() if kind.key not in ("pending",)]
    assert len(set(lines)) == len(lines)


def test_long_texts_show_their_newest_tokens() -> None:
    marks = [TokenMark(f"w{n} ", "decoded", n, n, shown_from=n) for n in range(2000)]
    page = TokenView(marks).html()
    assert "1,200 earlier tokens" in page
    assert "w1999 " in page and "w1199 " not in page and "w1200 " in page


def test_headless_shows_words(monkeypatch: pytest.MonkeyPatch) -> None:
    view = token_view(runs.with_cache(), None)
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    assert set(view._repr_mimebundle_()) == {"text/html", "text/plain"}
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"text/plain"} and "10 decoded" in bundle["text/plain"]


def test_pieces_put_split_characters_where_they_are_complete(tokenizer: Tokenizer) -> None:
    text = "# größer → 日本 🙂\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == text and len(found) == len(ids)
    assert "\ufffd" not in "".join(found)
    assert pieces(tokenizer, ids[3:], after=ids[:3]) == found[3:]
    assert pieces(None, ids) == [""] * len(ids)
