"""The zoo's tokenizer loses nothing, and reads the same with and without transformers."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minserve.zoo import zoo_path
from minserve.zoo.corpus.source import held_out_path
from minserve.zoo.corpus.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    PAD,
    PAD_ID,
    VOCAB_SIZE,
    decode_bytes,
    encode_bytes,
    load_tokenizer,
    train_tokenizer,
)

BASE = load_tokenizer(zoo_path("zoo/base"))


@given(st.binary(max_size=200))
@example(bytes(range(256)))
@example(b"\xed\xb2\x80 a surrogate, as bytes")
@example(END_OF_TEXT.encode())
@settings(max_examples=200)
def test_every_byte_string_round_trips(data: bytes) -> None:
    assert decode_bytes(BASE, encode_bytes(BASE, data)) == data


@given(st.text(max_size=200))
@example("def f(x):\n\treturn '\u00e9\U0001f40d'\r\n    \n")
@settings(max_examples=200)
def test_every_text_round_trips_through_the_plain_tokenizer(text: str) -> None:
    ids = BASE.encode(text, add_special_tokens=False).ids
    assert BASE.decode(ids, skip_special_tokens=False) == text


def test_incremental_decoding_delivers_the_same_text() -> None:
    from tokenizers.decoders import DecodeStream

    text = "x = 'é🐍'\n    return x\n"
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(BASE, i) for i in BASE.encode(text, add_special_tokens=False).ids]
    assert "".join(piece for piece in pieces if piece) == text


def test_special_tokens_have_their_ids() -> None:
    assert BASE.get_vocab_size() == VOCAB_SIZE
    assert (BASE.token_to_id(END_OF_TEXT), BASE.token_to_id(PAD)) == (END_OF_TEXT_ID, PAD_ID)


def test_indentation_travels_with_its_line_break() -> None:
    tokens = BASE.encode("def f(self):\n        return 12", add_special_tokens=False).tokens
    assert tokens[-3:] == ["return", "Ġ", "1"] or tokens[-2:] == ["1", "2"]
    assert any("\u010a" + 8 * "\u0120" in token for token in tokens)


def test_transformers_loads_the_same_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(zoo_path("zoo/base"))
    text = held_out_path("bisect").read_text(encoding="utf-8")
    assert theirs.encode(text, add_special_tokens=False) == BASE.encode(text).ids
    assert theirs.decode(theirs.encode(text, add_special_tokens=False)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)


def test_a_tokenizer_trained_on_little_still_has_every_byte() -> None:
    small: Tokenizer = train_tokenizer(["def f():\n    pass\n"], vocab_size=300)
    assert decode_bytes(small, encode_bytes(small, bytes(range(256)))) == bytes(range(256))
