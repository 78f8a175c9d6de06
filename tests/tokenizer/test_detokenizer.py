"""Text that arrives in pieces is the text of all tokens at once, in whole characters."""

from __future__ import annotations

import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer.vocabularies import KINDS, TEXT

from minserve.tokenizer import Tokenizer

TOKENIZERS = {name: Tokenizer(make()) for name, make in KINDS.items()}


def bytes_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of single bytes, where the vocabulary has them."""
    found = []
    for byte in text.encode():
        name = f"<0x{byte:02X}>"
        found += [i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == name]
    return found


def sequences(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, unknown ones too, with many characters in bytes, whole or broken off."""
    anything = st.integers(0, tokenizer.vocab_size + 2)
    characters = st.sampled_from(["é", "你", "😀", "\ufffd", " ", "a"])
    pieces = st.one_of(
        anything.map(lambda i: [i]),
        characters.map(lambda c: bytes_of(tokenizer, c)),
        characters.map(lambda c: bytes_of(tokenizer, c)[:-1]),
        st.sampled_from(TEXT).map(lambda t: tokenizer.encode(t)),
    )
    return st.lists(pieces, max_size=8).map(lambda parts: [i for part in parts for i in part])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_add_up_to_the_text_of_all_tokens(name, skip):
    tokenizer = TOKENIZERS[name]

    @settings(deadline=None, max_examples=80)
    @given(sequences(tokenizer), st.data())
    def check(ids, data):
        detokenizer, text, start = tokenizer.detokenizer(skip), "", 0
        while start < len(ids):
            stop = data.draw(st.integers(start + 1, min(len(ids), start + 3)))
            text += detokenizer.push(ids[start:stop])
            start = stop
        assert text + detokenizer.finish() == tokenizer.decode(ids, skip)

    check()


@pytest.mark.parametrize("name", KINDS)
def test_every_short_row_of_letters_and_spaces_adds_up(name):
    tokenizer = TOKENIZERS[name]
    wanted = {"a", "▁", "▁a", "▁▁", "Ġ", "##x", "b"}
    some = [i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) in wanted]
    for ids in product(some, repeat=4):
        detokenizer = tokenizer.detokenizer()
        text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.finish()
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte-level", "byte fallback, first space stripped"])
def test_no_broken_character_is_ever_shown(name):
    tokenizer = TOKENIZERS[name]
    text = "a é 你 😀 b" * 3
    detokenizer = tokenizer.detokenizer()
    shown = [detokenizer.push([token]) for token in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + detokenizer.finish() == text


def test_a_byte_that_is_never_part_of_a_character_is_shown_at_once():
    tokenizer = TOKENIZERS["byte-level"]
    alone = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) == "\ufffd")
    detokenizer = tokenizer.detokenizer()
    ids = [alone] * 5 + tokenizer.encode("ab")
    shown = "".join(detokenizer.push([token]) for token in ids)
    assert shown.startswith("\ufffd") and shown.endswith("ab")


def test_an_incomplete_character_is_shown_as_broken_only_at_the_end():
    tokenizer = TOKENIZERS["byte fallback, first space stripped"]
    detokenizer = tokenizer.detokenizer()
    ids = [*tokenizer.encode("a"), *bytes_of(tokenizer, "你")[:2]]
    assert detokenizer.push(ids) == ""  # the run of bytes is not over
    assert detokenizer.finish() == "a\ufffd\ufffd"


@pytest.mark.parametrize("name", KINDS)
def test_a_push_costs_the_same_however_long_the_text(name):
    tokenizer = TOKENIZERS[name]
    detokenizer = tokenizer.detokenizer()
    ids = [*tokenizer.encode("ab ab.\n"), *bytes_of(tokenizer, "你")] * 500

    def cost() -> float:
        times = []
        for token in ids:
            start = time.perf_counter()
            detokenizer.push([token])
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    first = cost()
    for _ in range(3):
        cost()
    assert cost() < 5 * first + 20e-6


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_are_shown_when_asked_for(name):
    tokenizer = TOKENIZERS[name]
    special = min(tokenizer.special_ids)
    for skip, shown in ((True, False), (False, True)):
        detokenizer = tokenizer.detokenizer(skip)
        text = detokenizer.push([special, *tokenizer.encode("ab")]) + detokenizer.finish()
        assert (tokenizer.token_text(special) in text) == shown
