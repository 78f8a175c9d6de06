"""Detokenisation and stop strings together: what a reader of a stream sees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer.vocabularies import KINDS

from minserve.request import SamplingParams
from minserve.tokenizer import TextStream, Tokenizer

TOKENIZERS = {name: Tokenizer(make()) for name, make in KINDS.items()}
CHARACTERS = "ab é你.\n"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("include", [True, False])
def test_the_stream_is_the_cut_text(name, include):
    tokenizer = TOKENIZERS[name]

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=15),
        st.lists(st.text(CHARACTERS, min_size=1, max_size=4), max_size=3),
        st.integers(1, 4),
    )
    def check(ids, stops, step):
        params = SamplingParams(stop=stops, include_stop_str_in_output=include)
        stream, whole = TextStream(tokenizer, params), tokenizer.decode(ids)
        shown = ""
        for start in range(0, len(ids), step):
            shown += stream.push(ids[start : start + step])
            assert shown == stream.text
        shown += stream.finish()
        assert stream.text == shown and whole.startswith(shown)
        starts = [whole.find(stop) for stop in stops if stop in whole]
        assert (stream.stopped_by is not None) == bool(starts)
        if starts:
            cut = min(starts) + (len(stream.stopped_by) if include else 0)
            assert shown == whole[:cut]
        else:
            assert shown == whole

    check()


def test_tokens_after_the_deciding_one_are_told_apart():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [token for letter in "ab STOP cd" for token in tokenizer.encode(letter)]
    stream = TextStream(tokenizer, SamplingParams(stop="STOP"))
    assert stream.push(ids) == "ab "
    assert (stream.stopped_by, stream.num_tokens) == ("STOP", 7)
    assert stream.push(ids) == stream.finish() == ""


@pytest.mark.parametrize("step", [1, 3, 100])
def test_stop_strings_of_the_first_min_tokens_do_not_count(step):
    tokenizer = TOKENIZERS["byte-level"]
    ids = [token for letter in "a.b.c.d" for token in tokenizer.encode(letter)]
    for min_tokens, text in (
        (0, "a"),
        (1, "a"),
        (2, "a.b"),
        (3, "a.b"),
        (4, "a.b.c"),
        (7, "a.b.c.d"),
    ):
        stream = TextStream(tokenizer, SamplingParams(stop=".", min_tokens=min_tokens))
        for start in range(0, len(ids), step):
            stream.push(ids[start : start + step])
        stream.finish()
        assert stream.text == text, min_tokens


def test_a_stop_string_that_begins_in_the_first_min_tokens_and_ends_later_counts():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [token for letter in "a<end>b" for token in tokenizer.encode(letter)]
    stream = TextStream(tokenizer, SamplingParams(stop="<end>", min_tokens=3))
    assert "".join(stream.push([token]) for token in ids) == "a"
    assert stream.stopped_by == "<end>"


def test_an_unfinished_stop_string_is_shown_at_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    stream = TextStream(tokenizer, SamplingParams(stop="STOP"))
    assert stream.push(tokenizer.encode("a STO")) == "a "
    assert stream.finish() == "STO" and stream.stopped_by is None
    assert stream.push(tokenizer.encode("P")) == ""


def test_a_character_broken_off_before_min_tokens_is_no_stop_string():
    tokenizer = TOKENIZERS["byte-level"]
    begun = next(token for token in range(300) if _begins_a_character(tokenizer, token))
    for min_tokens, text in ((0, ""), (1, ""), (2, "\ufffd")):
        stream = TextStream(tokenizer, SamplingParams(stop="\ufffd", min_tokens=min_tokens))
        assert stream.push([begun]) + stream.finish() == text


def _begins_a_character(tokenizer: Tokenizer, token: int) -> bool:
    waits = tokenizer.detokenizer().push([token]) == ""
    return waits and tokenizer.decode([token]) == "\ufffd"
