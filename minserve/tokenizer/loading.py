"""Reads a checkpoint's tokenizer files. The result behaves like transformers' AutoTokenizer.

`tokenizer.json` is read by the `tokenizers` library alone, because importing transformers takes
seconds. Checkpoints with only older files (SentencePiece, vocabulary and merges) are converted
by transformers.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minserve.files.json_file import FileError, read_bytes, shorten
from minserve.tokenizer.converting import OTHER_FILES, convert
from minserve.tokenizer.gguf import read_gguf_tokenizer
from minserve.tokenizer.settings import (
    TOKEN_FLAGS,
    Settings,
    TokenizerError,
    content,
    read_object,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_MAX_TOKENIZER_BYTES = 128 << 20
"""Four times the largest tokenizer.json we know, of 262,000 tokens."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a checkpoint's tokenizer files."""

    backend: Backend
    special_tokens: dict[str, str] = field(default_factory=dict)
    """By role: `bos_token`, `eos_token`, ..."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """By name; the usual one is "default"."""
    notes: tuple[str, ...] = ()
    """If files contradict each other: sentences that say which one is used."""


def read_tokenizer(path: Path) -> TokenizerFiles | None:
    """Read the tokenizer in a model's directory or GGUF file; None if there is none.

    Raises TokenizerError if there is one that cannot be used.
    """
    if path.is_file():
        found = read_gguf_tokenizer(path)
        return None if found is None else TokenizerFiles(*found)
    if os.path.lexists(path / "tokenizer.json"):
        return _read_fast(path)
    if any(os.path.lexists(path / name) for name in OTHER_FILES):
        backend, special = convert(path)
        _without_training_settings(backend)
        return TokenizerFiles(backend, special, Settings.read(path).chat_templates())
    return None


def _read_fast(path: Path) -> TokenizerFiles:
    settings = Settings.read(path)
    # Errors in these small files are found before the work on the large one.
    special, templates = settings.special_tokens(), settings.chat_templates()
    file = path / "tokenizer.json"
    backend, is_byte_level = _parse(file)
    try:
        _without_training_settings(backend)
        backend.encode_special_tokens = bool(settings.flag("split_special_tokens"))
        notes: tuple[str, ...] = ()
        if not is_byte_level and _is_rebuilt_as_llama(path, settings):
            _rebuild_as_llama(backend, settings)
        elif settings.tokenizer_class() == "GPT2Tokenizer":
            notes = _gpt2_notes(backend)
        _add_tokens(backend, settings)
        # Otherwise an error in a decoder or a template would appear only at the first request.
        backend.decode(backend.encode("a 1", add_special_tokens=True).ids[:64])
    except (KeyboardInterrupt, SystemExit, TokenizerError):
        raise
    except BaseException as error:
        raise _unusable(file, error) from None
    return TokenizerFiles(backend, special, templates, notes)


def _parse(file: Path) -> tuple[Backend, bool]:
    """The tokenizer in a tokenizer.json, and whether its tokens are byte sequences."""
    from tokenizers import Tokenizer as Backend

    try:
        encoded = read_bytes(file, max_bytes=_MAX_TOKENIZER_BYTES, what="a tokenizer")
    except FileError as error:
        raise TokenizerError(str(error)) from None
    try:
        return Backend.from_buffer(encoded), b'"ByteLevel"' in encoded
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, or a Rust panic, which is a BaseException
        raise _unusable(file, error) from None


def _unusable(file: Path, error: BaseException) -> TokenizerError:
    reason = shorten(str(error) or type(error).__name__, 300)
    return TokenizerError(f"{file} is not a tokenizer that `tokenizers` can use: {reason}.")


def _without_training_settings(backend: Backend) -> None:
    """Remove the padding and truncation of the training script, which a file may contain."""
    backend.no_padding()
    backend.no_truncation()


def _gpt2_notes(backend: Backend) -> tuple[str, ...]:
    """Note for GPT-2 tokenizers: transformers 5 rebuilds this class from the vocabulary and
    splits text as GPT-2 does. The model was trained with the splitting in its tokenizer.json,
    which is used here."""
    if backend.pre_tokenizer is None:
        return ()
    kind = json.loads(backend.pre_tokenizer.__getstate__()).get("type")
    if kind == "ByteLevel" and backend.normalizer is None:
        return ()
    return (
        "tokenizer_class 'GPT2Tokenizer': tokenizer.json is followed, which splits text "
        "differently (digits one by one, for example); transformers 5 replaces that by GPT-2's "
        "own splitting and may give other tokens",
    )


def _is_rebuilt_as_llama(path: Path, settings: Settings) -> bool:
    """Whether transformers 5 uses only the vocabulary of this tokenizer.json.

    It does so for checkpoints like Llama 2's; their files, converted by older versions of
    transformers, treat leading spaces and text after special tokens differently.
    """
    if settings.tokenizer_class() != "LlamaTokenizer":
        return False
    return bool(read_object(path / "config.json").get("model_type", "llama") == "llama")


def _rebuild_as_llama(backend: Backend, settings: Settings) -> None:
    """Add around the vocabulary what transformers' LlamaTokenizer adds."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    prefix = settings.flag("add_prefix_space") is not False
    scheme = ("always" if settings.flag("legacy") else "first") if prefix else "never"
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    backend.model.fuse_unk = True
    backend.model.byte_fallback = True


def _add_tokens(backend: Backend, settings: Settings) -> None:
    """Tokens that tokenizer_config.json adds to those of tokenizer.json, by id or by role."""
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    for token in map(_added_token, settings.added_tokens()):
        if repr(token) not in known:
            backend.add_tokens([token])
    # A role does not change the flags of a token that exists already.
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    entries = [*settings.roles().values(), *settings.extra_tokens()]
    backend.add_special_tokens(
        [_added_token(entry) for entry in entries if content(entry) not in added]
    )


def _added_token(entry: str | dict[str, Any]) -> Any:
    from tokenizers import AddedToken

    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    return AddedToken(
        entry["content"], **{flag: entry[flag] for flag in TOKEN_FLAGS if flag in entry}
    )
