"""Reads a checkpoint's tokenizer files. The result behaves as transformers' AutoTokenizer does.

`tokenizer.json` is read by the `tokenizers` library alone, since importing transformers takes
seconds; checkpoints that only have older files (SentencePiece, vocabulary and merges) go through
transformers, which converts them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_OTHER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.tiktoken",
)
_SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded. The message says which file, and what to do."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint's tokenizer files say."""

    backend: Backend
    special_tokens: dict[str, str] = field(default_factory=dict)
    """By role: `bos_token`, `eos_token`, ..."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """By name; the usual one is "default"."""


def read_tokenizer(path: Path) -> TokenizerFiles | None:
    """Read the tokenizer in a model's directory; None when there is none.

    Raises TokenizerError when there is one that cannot be used.
    """
    if (path / "tokenizer.json").is_file():
        return _read_fast(path)
    if any((path / name).is_file() for name in _OTHER_FILES):
        return _read_with_transformers(path)
    return None


def _read_fast(path: Path) -> TokenizerFiles:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path / 'tokenizer.json'} is not a tokenizer that `tokenizers` can read: {error}"
        ) from error
    config = _read_json(path / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # newer files repeat the map, and may contradict it
        config.update(_read_json(path / "special_tokens_map.json"))
    # A file may carry the padding and truncation of its training script.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    special = {name: _content(config[name]) for name in _SPECIAL_NAMES if config.get(name)}
    if _is_rebuilt_as_llama(path, config):
        _rebuild_as_llama(backend, config)
    _add_tokens(backend, config)
    return TokenizerFiles(backend, special, _chat_templates(path, config))


def _is_rebuilt_as_llama(path: Path, config: dict[str, Any]) -> bool:
    """Whether transformers 5 takes only the vocabulary from this tokenizer.json.

    It does so for checkpoints of Llama 2's kind; their files, converted by its older versions,
    treat leading spaces and text after special tokens differently.
    """
    if str(config.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return False
    if _read_json(path / "config.json").get("model_type", "llama") != "llama":
        return False
    return '"ByteLevel"' not in (path / "tokenizer.json").read_text(encoding="utf-8")


def _rebuild_as_llama(backend: Backend, config: dict[str, Any]) -> None:
    """What transformers' LlamaTokenizer puts around the vocabulary."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    backend.model.fuse_unk = True
    backend.model.byte_fallback = True


def _add_tokens(backend: Backend, config: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json adds to those of tokenizer.json, by id or by role."""
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    listed = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda kv: int(kv[0]))
    for _, entry in listed:
        token = _added_token(entry)
        if repr(token) not in known:
            backend.add_tokens([token])
    roles = [config.get(name) for name in _SPECIAL_NAMES]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    roles += extra.values() if isinstance(extra, dict) else extra
    # A role does not change the flags of a token that is there already.
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = [_added_token(entry) for entry in roles if entry]
    backend.add_special_tokens([token for token in tokens if token.content not in added])


def _read_with_transformers(path: Path) -> TokenizerFiles:
    """Tokenizers in older formats: transformers converts them to the fast kind."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise TokenizerError(
            f"{path} has no tokenizer.json, and converting its tokenizer needs transformers: "
            "pip install transformers sentencepiece"
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # whatever a converter of an unknown format may raise
        raise TokenizerError(
            f"{path} has no tokenizer.json, and transformers could not convert its tokenizer "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else error!r}). "
            "A SentencePiece file needs: pip install sentencepiece protobuf"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{path} has a tokenizer ({type(loaded).__name__}) without a fast form: save one as "
            "tokenizer.json, or give prompts as token ids"
        )
    backend.no_padding()
    backend.no_truncation()
    special = {
        name: str(token) for name in _SPECIAL_NAMES if (token := getattr(loaded, name, None))
    }
    return TokenizerFiles(
        backend, special, _chat_templates(path, _read_json(path / "tokenizer_config.json"))
    )


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name: from files of their own, or from tokenizer_config.json."""
    templates: dict[str, str] = {}
    listed = config.get("chat_template")
    if isinstance(listed, str):
        templates["default"] = listed
    elif isinstance(listed, list):
        templates.update((entry["name"], entry["template"]) for entry in listed)
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (path / "chat_template.jinja").is_file():
        templates["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    return content


def _content(entry: str | dict[str, Any]) -> str:
    return entry if isinstance(entry, str) else str(entry["content"])


def _added_token(entry: str | dict[str, Any]) -> Any:
    from tokenizers import AddedToken

    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry})
