"""A small byte-level vocabulary, a model of random weights over it, and an oracle of choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models.oracle import random_model, save
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.loading import load_model
from minserve.tokenizer import Tokenizer

EOS = 0
PIECES = ["ab", "abc", "in", '":', "{}", "true", " t", "e\n"]
"""Tokens of several characters. Written as they are, except that a tokenizer spells bytes."""


def tokenizer() -> Tokenizer:
    """All 256 bytes, `PIECES`, an end token, and a token that looks like text but is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": EOS, '"true"': 1} | {each: 2 + i for i, each in enumerate(alphabet)}
    spell = {bytes_of(each): each for each in alphabet}
    for piece in PIECES:
        vocab["".join(spell[byte] for byte in piece.encode())] = len(vocab)
    backend = Backend(BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    backend.add_special_tokens([AddedToken('"true"', special=True)])
    return Tokenizer(backend, {"eos_token": "<eos>"})


def bytes_of(spelling: str) -> int:
    """The byte that a character of a byte-level vocabulary stands for."""
    from minserve.tokenizer.detokenizer import byte_level_alphabet

    return byte_level_alphabet()[spelling]


def save_model(path: Path, seed: int = 3, **values: Any) -> Path:
    """A model of random weights over that vocabulary; its logits are far apart."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        **{
            "vocab_size": 2 + 256 + len(PIECES) + 5,  # a model may have more rows than tokens
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "eos_token_id": EOS,
            "bos_token_id": None,
            "tie_word_embeddings": False,
        }
        | values
    )
    save(random_model(config, seed=seed), path)
    tokenizer()._backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return path


def engine(
    path: Path, values: Mapping[str, Any] | None = None, parts: EngineParts = CONFIGURED
) -> Engine:
    """An engine over the model, in float64."""
    return build_engine(load_model(path, config(values)), parts=parts)


def config(values: Mapping[str, Any] | None = None) -> EngineConfig:
    settings = {"device": "cpu", "dtype": "float64", "memory.check_integrity": True}
    return EngineConfig().with_values(settings | dict(values or {}))


def allowed_by_hand(
    choices: Sequence[str], text: bytes, pieces: Sequence[bytes], ends: Sequence[int]
) -> set[int]:
    """The tokens after which `text` still begins a choice; the end tokens if it is one."""
    whole = [choice.encode() for choice in choices]
    found = {
        token
        for token, piece in enumerate(pieces)
        if piece and any(each.startswith(text + piece) for each in whole)
    }
    return found | (set(ends) if text in whole else set())


def unpack(bits: np.ndarray) -> set[int]:
    """The tokens of `TokenMask.allowed`."""
    return set(np.unpackbits(bits, bitorder="little").nonzero()[0].tolist())
