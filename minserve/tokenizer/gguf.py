"""The tokenizer in a GGUF file's metadata: a vocabulary, merges, and the name of a pre-tokenizer.

Byte-level BPE only (llama.cpp's model "gpt2"). How a text is split before merging is not in
the file: `PRE_TOKENIZERS` has it by name, as in the models' own tokenizer.json, and another name is
refused, because with other pieces a model reads other tokens than it was trained on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minserve.files.gguf_file import GGUFFile
from minserve.files.json_file import FileError, shorten
from minserve.tokenizer.settings import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
_LAST_TYPE = 6
"""llama.cpp's types of tokens; 5 is unused, 6 a byte."""
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ELSEWHERE = "load the model's Hugging Face directory, or give token ids"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """How one family splits a text into the pieces that are merged."""

    pattern: str | None = None
    """A regular expression of pieces; None: GPT-2's."""
    digits: bool = False
    """Each digit is a piece of its own."""
    composes: bool = False
    """Texts are brought to Unicode's form NFC first."""
    whole_tokens: bool = False
    """A piece that is a token is not merged from its bytes."""
    begins: bool = False
    """A text begins with BOS, if the file does not say."""


_LLAMA_BPE = PreTokenizer(_LLAMA3, whole_tokens=True, begins=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(digits=True),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": PreTokenizer(_QWEN2, composes=True),
}
"""By llama.cpp's name, the value of tokenizer.ggml.pre."""


def read_gguf_tokenizer(path: Path) -> tuple[Backend, dict[str, str], dict[str, str]] | None:
    """The tokenizer in a file, its special tokens by role, and its chat templates by name; None if
    the file has none.

    Raises TokenizerError if there is one that cannot be used.
    """
    try:
        file = GGUFFile.read(path)
        if _MODEL not in file.metadata:
            return None
        if not isinstance(model := file.metadata[_MODEL], str) or model != "gpt2":
            raise file.error(_MODEL, "'gpt2', a byte-level BPE", _ELSEWHERE)
        name = file.metadata.get(_PRE)
        pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if pre is None:
            raise file.error(_PRE, f"one of {', '.join(PRE_TOKENIZERS)}", _ELSEWHERE)
        tokens, types = _vocabulary(file)
        special = {
            role: tokens[token]
            for role, own in _ROLES.items()
            if (token := _token(file, own, len(tokens))) is not None
        }
        templates = _templates(file)
        ends = [_flag(file, "add_bos_token", pre.begins), _flag(file, "add_eos_token", False)]
        merges = _merges(file)
    except FileError as error:
        raise TokenizerError(str(error)) from None
    try:
        backend = _backend(pre, tokens, types, merges)
        _add_ends(backend, special, *ends)
        backend.decode(backend.encode("a 1", add_special_tokens=True).ids)
    except (KeyboardInterrupt, SystemExit, TokenizerError):
        raise
    except BaseException as error:  # plain Exception, or a Rust panic, which is a BaseException
        reason = shorten(str(error) or type(error).__name__, 300)
        raise TokenizerError(
            f"the tokenizer in {path} is none that `tokenizers` can use: {reason}."
        ) from None
    return backend, special, templates


def _vocabulary(file: GGUFFile) -> tuple[list[str], Any]:
    """The tokens by id, and the type of each."""
    tokens = _strings(file, _TOKENS)
    if not tokens:
        raise file.error(_TOKENS, "at least one token", "convert the model again")
    if len(set(tokens)) < len(tokens):
        [(twice, _)] = Counter(tokens).most_common(1)
        raise file.error(
            _TOKENS, f"each token once, and {shorten(repr(twice))} is there twice", _ELSEWHERE
        )
    types = file.metadata.get(_TYPES)
    if types is None:
        return tokens, np.full(len(tokens), _NORMAL)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu":
        raise file.error(_TYPES, "an array of integers", "convert the model again")
    if len(types) != len(tokens):
        raise file.error(
            _TYPES, f"{len(tokens):,} types, one a token, not {len(types):,}", _ELSEWHERE
        )
    unknown = types[(types < _NORMAL) | (types > _LAST_TYPE)]
    if unknown.size:
        raise file.error(_TYPES, f"types 1 to {_LAST_TYPE}, not {unknown[0]}", _ELSEWHERE)
    return tokens, types


def _strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    # A list holds items of one type; those of an array of arrays or of booleans are no strings.
    if not isinstance(value, list) or (value and not isinstance(value[0], str)):
        raise file.error(key, "an array of strings", "convert the model again")
    return value


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    pairs = []
    for merge in _strings(file, _MERGES):
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise file.error(
                _MERGES, f"two parts and a space between, not {shorten(repr(merge))}", _ELSEWHERE
            )
        pairs.append((left, right))
    return pairs


def _token(file: GGUFFile, role: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    value = file.metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < num_tokens:
        raise file.error(key, f"a token below {num_tokens:,}", "convert the model again")
    return value


def _flag(file: GGUFFile, name: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    value = file.metadata.get(key, default)
    if not isinstance(value, bool):
        raise file.error(key, "true or false", "convert the model again")
    return value


def _templates(file: GGUFFile) -> dict[str, str]:
    templates = {}
    for key, value in file.metadata.items():
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
            if not isinstance(value, str):
                raise file.error(key, "a jinja2 template", "convert the model again")
            templates[key.removeprefix(_TEMPLATE).removeprefix(".") or "default"] = value
    return templates


def _backend(
    pre: PreTokenizer, tokens: list[str], types: Any, merges: list[tuple[str, str]]
) -> Backend:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre.whole_tokens))
    if pre.composes:
        backend.normalizer = normalizers.NFC()
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.pattern is not None:
        parts.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
    backend.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    # In two calls: each call compiles the search for all added tokens again.
    for kinds, special in (((_UNKNOWN, _CONTROL), True), ((_USER_DEFINED,), False)):
        numbers = np.flatnonzero(np.isin(types, kinds))
        added = [AddedToken(tokens[each], special=special, normalized=False) for each in numbers]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    return backend


def _add_ends(backend: Backend, special: dict[str, str], begins: bool, ends: bool) -> None:
    """Let the tokenizer put BOS before a text and EOS behind it, where the file says so."""
    from tokenizers import processors

    bos, eos = special.get("bos_token"), special.get("eos_token")
    around = [bos if begins else None, "$A", eos if ends else None]
    template = [part for part in around if part is not None]
    if len(template) > 1:
        names = [(part, backend.token_to_id(part)) for part in template if part != "$A"]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=names
        )
