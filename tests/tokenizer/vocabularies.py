"""Small tokenizers of every kind that checkpoints come with, built on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ["héllo wörld 你好 😀 def f(x): return x + 1", "  two  spaces\n\ttab", "naïve café"] * 5
BOS, EOS = "<s>", "</s>"


def byte_level() -> Backend:
    """As GPT-2, Llama 3, Qwen: tokens are byte sequences. With added tokens of all sorts."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.add_tokens(["<think>", "é", "你", "a é", " spaced "])
    return backend


def byte_fallback(decoder: Any = None) -> Backend:
    """As Llama 2, Mistral, Gemma: words with a leading "▁", and tokens for single bytes."""
    pieces = ["▁", "a", "b", "▁a", "▁▁", "ab", "▁ab", "é", "你", ".", "▁.", "##x", "'s"]
    tokens = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    backend = Backend(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁", "▁")],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    replaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoder or decoders.Sequence([*replaced, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([BOS, EOS])
    backend.add_tokens(["<think>", " spaced "])
    return backend


KINDS = {
    "byte-level": byte_level,
    "byte fallback, first space stripped": byte_fallback,
    "byte fallback, first space kept": lambda: byte_fallback(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "two spaces stripped": lambda: byte_fallback(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    ),
    "metaspace": lambda: byte_fallback(decoders.Metaspace()),
    "word pieces": lambda: byte_fallback(decoders.WordPiece()),
    "word ends": lambda: byte_fallback(decoders.BPEDecoder(suffix="b")),
    "byte-level among others": lambda: byte_fallback(
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    ),
}


def starting_with_bos(backend: Backend) -> Backend:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return backend


def save(backend: Backend, path: Path, **config: Any) -> Path:
    """A model's directory with this tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (path / "tokenizer_config.json").write_text(json.dumps(defaults | config))
    return path
