"""Masks of grammars against an oracle that needs no automaton, in every order of questions."""

from __future__ import annotations

import random

import pytest
from sampling.grammar import words

from minserve.request import InvalidRequestError, Request, SamplingParams, StructuredOutputs
from minserve.sampling import Grammars, make_masks

CHOICES = ["abab", "abc", "ab", "a", "true", " true\n", "tru", "né😀", "né😁", "ab\n\"'\\", "{}"]
TOKENS = words.tokenizer()
PIECES = [
    b"" if token in (words.EOS, 1) else TOKENS.token_bytes(token)
    for token in range(TOKENS.vocab_size)
]
STOP = 7
FORMS = {
    "choice": StructuredOutputs(choice=CHOICES),
    "regex": StructuredOutputs(
        regex="abab|abc?|a|true|(tru)| true\\n|né[😀😁]|ab\\n\"'\\\\|\\{\\}"
    ),
    "grammar": StructuredOutputs(
        grammar='start: "abab" | "abc" | "ab" | "a" | "tru" "e"? | " true\\n" | n | other | "{}"\n'
        'other: "ab\\n\\"\'\\\\"\nn: "né😀" | "né😁"'
    ),
}


def request(output: list[int], form: StructuredOutputs, masks=None, sample: int = 0) -> Request:
    params = SamplingParams(structured_outputs=form, stop_token_ids=[STOP])
    prompt = [5, 6, 9]
    if masks is None:
        masks = make_masks(params, TOKENS, Grammars(TOKENS, [words.EOS], 1000))
    return Request("r", prompt, params, 0.0, 1, sample, token_ids=prompt + output, masks=masks)


def answer(each: Request, output: list[int]) -> set[int]:
    mask = each.masks[0].at(each, [*each.prompt_token_ids, *output])
    assert mask.allowed is not None and not mask.banned
    return words.unpack(mask.allowed)


def expected(output: list[int]) -> set[int]:
    text = b"".join(PIECES[token] for token in output)
    return words.allowed_by_hand(CHOICES, text, PIECES, [words.EOS, STOP])


def walks(seed: int) -> list[list[int]]:
    """Outputs that the choices allow, each drawn token by token."""
    rng, found = random.Random(seed), []
    for _ in range(12):
        output: list[int] = []
        while allowed := sorted(expected(output) - {words.EOS, STOP}):
            found.append(list(output))
            output.append(rng.choice(allowed))
        found.append(output)
    return found


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_a_mask_allows_exactly_what_continues_the_form_in_any_order_of_questions(kind, seed):
    each = request([], FORMS[kind])
    outputs = walks(seed)
    random.Random(seed).shuffle(outputs)  # as drafts, preemptions and moved requests ask
    for output in outputs:
        assert answer(each, output) == expected(output), output


def test_tokens_may_come_in_any_sequence():
    each = request([], FORMS["choice"])
    a, b = (TOKENS.encode(letter)[0] for letter in "ab")
    for output in ([a], [a, b], [a], [], [a, b, a]):
        for kind in (list, tuple):
            mask = each.masks[0].at(each, kind([*each.prompt_token_ids, *output]))
            assert words.unpack(mask.allowed) == expected(output)


def test_samples_of_one_prompt_have_a_cursor_each_and_one_compiled_form():
    masks = request([], FORMS["choice"]).masks
    samples = [request([], FORMS["choice"], masks, index) for index in range(3)]
    steps = zip(walks(1), walks(2), walks(3), strict=False)
    for step in steps:
        for sample, output in zip(samples, step, strict=True):
            assert answer(sample, output) == expected(output)


def test_after_a_banned_token_of_a_draft_nothing_is_an_error_and_nothing_is_remembered():
    each = request([], FORMS["choice"])
    a, b, z = (TOKENS.encode(letter)[0] for letter in "abz")
    for bad in ([z], [a, z], [a, b, z, z], [a, words.EOS], [a, b, words.EOS, b], [STOP], [300]):
        mask = each.masks[0].at(each, [*each.prompt_token_ids, *bad])
        assert mask.allowed is None and not mask.banned
        assert answer(each, [a]) == expected([a])
        assert answer(each, [a, b]) == expected([a, b])


def test_special_tokens_are_no_text_even_if_they_are_spelled_like_some():
    each = request([], StructuredOutputs(choice=['"true"', "<eos>"]))
    found = answer(each, [])
    assert found == {TOKENS.encode('"')[0], TOKENS.encode("<")[0]} - {1, words.EOS}


@pytest.mark.parametrize("white", [False, True])
def test_a_form_that_must_stop_allows_the_end_alone(white):
    form = StructuredOutputs(json={"enum": [{}]}, disable_any_whitespace=white)
    each = request([], form)
    brace = [i for i, piece in enumerate(PIECES) if piece == b"{}"]
    assert answer(each, brace) == {words.EOS, STOP}


def test_whitespace_between_parts_is_bounded():
    schema = {"type": "array", "items": {"type": "integer"}}

    def accepts(text: str, **how: bool) -> bool:
        each = request([], StructuredOutputs(json=schema, **how))
        ids = [
            next(i for i, p in enumerate(PIECES) if p == bytes([byte])) for byte in text.encode()
        ]
        mask = each.masks[0].at(each, [*each.prompt_token_ids, *ids])
        return mask.allowed is not None and words.EOS in words.unpack(mask.allowed)

    assert all(accepts(text) for text in ("[1,2]", "[1, 2]", "[1,\n  2\n]", "[ 1 , 2 ]", "[]"))
    assert not any(accepts(text) for text in ("[1,  2]", "[1,\n\n2]", " [1]", "[1] ", "[1\t]"))
    assert not accepts("[1,\n" + 17 * " " + "2]") and accepts("[1,\n" + 16 * " " + "2]")
    assert accepts("[1,2]", disable_any_whitespace=True)
    assert not accepts("[1, 2]", disable_any_whitespace=True)


def test_forms_are_compiled_once_and_the_oldest_are_dropped(monkeypatch):
    monkeypatch.setattr("minserve.sampling.grammar.compiled.MOST_KEPT", 2)
    grammars = Grammars(TOKENS, [words.EOS], 1000)
    for text, count in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        grammars.prepare(SamplingParams(structured_outputs=StructuredOutputs(regex=text)))
        assert grammars.num_compiled == count
    grammars.prepare(SamplingParams(structured_outputs=StructuredOutputs(choice=["b"])))
    assert grammars.num_compiled == 5, "a regex and a choice of one text are two forms"


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"regex": "a("}, r"structured_outputs\.regex='a\(' cannot be compiled: .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"json": {"not": {}}}, r"structured_outputs\.json.*Unimplemented keys: \[.not.\]"),
        ({"json": {"not": {}, "x-guidance": {"lenient": True}}}, "Unimplemented keys"),
        ({"json": {"$ref": "http://x.y/z"}}, "Resource 'http://x.y/z'"),
        ({"json": {"$ref": "#/nowhere"}}, r"structured_outputs\.json"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 1}}, "structured_outputs"),
        ({"grammar": 'start: "a'}, r"structured_outputs\.grammar.*lexer error"),
        ({"grammar": "start: other"}, r"structured_outputs\.grammar"),
        ({"regex": "a" * 1001}, "1001 characters, and admission.max_grammar_chars allows 1000"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_sentence(form, told):
    with pytest.raises(InvalidRequestError, match=told) as caught:
        request([], StructuredOutputs(**form))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_without_end_tokens_a_tokenizer_or_the_library_the_sentence_says_what_to_do(monkeypatch):
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="a"))
    with pytest.raises(InvalidRequestError, match="give stop_token_ids"):
        make_masks(params, TOKENS, Grammars(TOKENS, [], 1000))
    with pytest.raises(InvalidRequestError, match="needs a tokenizer"):
        make_masks(params, None, Grammars(None, [0], 1000))
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'minserve\[structured\]'"):
        make_masks(params, TOKENS, Grammars(TOKENS, [0], 1000))


def test_the_library_is_imported_only_when_a_form_is_asked_for():
    import subprocess
    import sys

    program = (
        "import sys, minserve, minserve.sampling, minserve.engine;"
        "minserve.SamplingParams(structured_outputs=minserve.StructuredOutputs(regex='a'));"
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def vocabularies(path):
    """Tokenizers of other kinds: from a GGUF file, of SentencePiece, and the zoo's."""
    from gguf_files import File
    from tokenizer.test_gguf import metadata_of, trained
    from tokenizer.test_token_bytes import loaded, sentencepiece

    from minserve.tokenizer import Tokenizer

    written = File(metadata_of(trained("llama-bpe"), "llama-bpe")).write(path / "m.gguf")
    gguf = Tokenizer.from_dir(written)
    assert gguf is not None
    return {"gguf": gguf, "sentencepiece": sentencepiece(), "zoo": loaded("zoo/base")}


def test_masks_over_vocabularies_of_other_kinds_are_exact_too(tmp_path):
    choices = ["ab a", "a b", "é {", "é", "def f():\n    return", "   "]
    form = StructuredOutputs(choice=choices)
    for name, tokenizer in vocabularies(tmp_path).items():
        end = min(tokenizer.special_ids)
        pieces = [
            b"" if token in tokenizer.special_ids else tokenizer.token_bytes(token)
            for token in range(tokenizer.vocab_size)
        ]
        params = SamplingParams(structured_outputs=form)
        each = request([], form, make_masks(params, tokenizer, Grammars(tokenizer, [end], 1000)))
        rng, output, seen = random.Random(2), list[int](), 0
        for _ in range(60):
            text = b"".join(pieces[token] for token in output)
            hand = words.allowed_by_hand(choices, text, pieces, [end])
            assert answer(each, output) == hand, (name, output)
            seen += end in hand
            more = sorted(hand - {end})
            output = [*output, rng.choice(more)] if more else []
        assert seen, name
