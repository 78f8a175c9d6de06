"""Stop strings cut the same text however it was split, and no part of one is ever shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.tokenizer import StopChecker


def oracle(text: str, stops: list[str], include: bool, floor: int = 0) -> tuple[str, str | None]:
    """On the whole text: the earliest start wins, then the shorter string; ends beyond floor."""
    found = [
        (start, len(stop), stop)
        for stop in stops
        for start in range(len(text))
        if text.startswith(stop, start) and start + len(stop) > floor
    ]
    if not found:
        return text, None
    start, length, stop = min(found)
    return text[: start + length if include else start], stop


# Two letters, so that stop strings overlap, repeat and contain each other.
texts = st.text("ab", max_size=20)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=400)
@given(texts, stop_lists, st.booleans(), st.lists(st.integers(0, 20), max_size=20))
def test_any_split_gives_the_text_of_the_whole(text, stops, include, cuts):
    checker = StopChecker(stops, include)
    shown = ""
    final, stop = oracle(text, stops, include)
    for piece in split(text, cuts):
        shown += checker.push(piece)
        assert final.startswith(shown)
    assert (shown + checker.finish(), checker.matched) == (final, stop)


@settings(max_examples=300)
@given(
    texts, stop_lists, st.booleans(), st.lists(st.integers(0, 20), max_size=20), st.integers(0, 9)
)
def test_occurrences_within_the_first_pieces_do_not_count(text, stops, include, cuts, first):
    checker, pieces = StopChecker(stops, include), split(text, cuts)
    shown, floor = "", len("".join(pieces[:first]))
    final, stop = oracle(text, stops, include, floor)
    for index, piece in enumerate(pieces):
        shown += checker.push(piece, may_stop=index >= first)
        assert final.startswith(shown)
    assert (shown + checker.finish(), checker.matched) == (final, stop)


@settings(max_examples=300)
@given(texts, stop_lists)
def test_text_that_cannot_become_a_stop_string_is_shown_at_once(text, stops):
    checker, shown = StopChecker(stops), ""
    for index, character in enumerate(text):
        shown += checker.push(character)
        if checker.matched is not None:
            break
        held = text[: index + 1][len(shown) :]
        # Something held back is a beginning of a stop string, or a found one that an earlier,
        # longer one may still supersede.
        assert any(stop.startswith(held) for stop in stops) or held == ""


def test_a_stop_string_ends_the_text_with_the_piece_that_completes_it():
    checker = StopChecker(["\nQ:"])
    assert [checker.push(piece) for piece in ["42", "\n", "Q", ": what"]] == ["42", "", "", ""]
    assert checker.matched == "\nQ:"
    assert checker.push("more") == checker.finish() == ""


def test_the_stop_string_is_kept_when_asked_for():
    checker = StopChecker(["END"], include=True)
    assert checker.push("the EN") + checker.push("D of") == "the END"


def test_a_longer_stop_string_that_started_earlier_is_waited_for():
    checker = StopChecker(["abc", "b"])
    assert checker.push("ab") == "" and checker.matched is None
    assert checker.push("c") == "" and checker.matched == "abc"
    checker = StopChecker(["abc", "b"])
    checker.push("ab")
    assert checker.push("x") == "a" and checker.matched == "b"


def test_no_stop_strings_pass_everything():
    checker = StopChecker([])
    assert checker.push("abc") == "abc" and checker.finish() == ""


@pytest.mark.parametrize("length", [2, 20_000])
def test_long_stop_strings_cost_little(length):
    checker = StopChecker(["x" + "y" * length])
    for _ in range(2000):
        assert checker.push("zy") == "zy"
