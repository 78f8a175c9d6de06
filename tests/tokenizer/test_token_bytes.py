"""The bytes of single tokens are those of the text that they make together."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, WordPiece

from minserve.loading import find_model
from minserve.request import InvalidRequestError
from minserve.tokenizer import Tokenizer

PIECES = ["▁", "▁a", "a", "b▁b", "é", "{", "▁▁▁", "<a>"]


def sentencepiece() -> Tokenizer:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    model = BPE(
        {name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"
    )
    backend = Backend(model)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    return Tokenizer(backend)


def loaded(name: str) -> Tokenizer:
    found = Tokenizer.from_dir(find_model(name))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name", ["zoo/base", "sentencepiece", pytest.param("zoo/smollm2", marks=pytest.mark.real)]
)
def test_the_bytes_of_tokens_make_the_text_that_decoding_gives(name):
    tokenizer = sentencepiece() if name == "sentencepiece" else loaded(name)
    rng = random.Random(1)
    text = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
    start = next(token for token in text if tokenizer.token_bytes(token) == b"a")
    for _ in range(300):
        # A text's first space may be stripped, and a broken character shown in several ways.
        ids = [start, *rng.choices(text, k=rng.randint(1, 12))]
        joined = b"".join(map(tokenizer.token_bytes, ids))
        try:
            expected = joined.decode()
        except UnicodeDecodeError:
            continue
        assert tokenizer.decode(ids) == expected


def test_every_byte_has_a_token_and_unknown_ids_have_no_bytes():
    for tokenizer in (sentencepiece(), loaded("zoo/base")):
        single = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
        # Bytes that no text in UTF-8 contains may be missing.
        assert {bytes([byte]) for byte in range(128)} <= single
        assert tokenizer.token_bytes(10**6) == b""


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused_in_a_sentence():
    backend = Backend(WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(InvalidRequestError, match="decodes by WordPiece: use allowed_token_ids"):
        Tokenizer(backend).token_bytes(1)
    backend.decoder = None
    with pytest.raises(InvalidRequestError, match="decodes by nothing"):
        Tokenizer(backend).token_bytes(1)
