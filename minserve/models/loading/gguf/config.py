"""From the metadata of a GGUF file to the keys of a `config.json`, so that one reader checks both.

An architecture is an entry in `ARCHITECTURES`. A key under the architecture's name that is not
known is refused: it may change the model's results. Knows nothing about how tensors are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minserve.files.gguf_file import GGUFFile
from minserve.files.json_file import FileError, shorten
from minserve.models.config_file import ConfigFile
from minserve.models.errors import ModelError
from minserve.models.loading.gguf.rope_factors import llama3_scaling

ROPE_FACTORS = "rope_freqs.weight"
_ELSEWHERE = "run this model with llama.cpp, or load its Hugging Face checkpoint"


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's name for an architecture stands for."""

    family: str
    """Its `model_type` on the hub."""
    permuted: bool = False
    """Rows of query and key projections are stored with the two rows of a rotary pair adjacent."""


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
"""By `general.architecture`. Mistral's and SmolLM2's files say "llama" as well."""
_KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""A `config.json`'s names, and those in the metadata behind the architecture's."""
_REQUIRED = frozenset(_KEYS) - {"num_key_value_heads", "head_dim", "rope_theta"}
_TOKENS = {"bos_token_id": ("bos",), "eos_token_id": ("eos", "eot", "eom")}
_ROPE = ("type", "factor", "original_context_length", "finetuned")
_MEANINGLESS = frozenset(("vocab_size", "tensor_data_layout"))
"""Keys that say nothing more than the tensors do."""


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture of a file. Raises ModelError for one that this decoder does not have, for an
    adapter, and for a part of a split model."""
    if not _says(file, "general.type", "model", "model"):
        raise _refused(file, "general.type", "'model'", "give the file of the model itself")
    if not (_says(file, "split.count", 0, 0) or _says(file, "split.count", 1, 0)):
        raise _refused(
            file,
            "split.count",
            "a model in one file",
            "join its parts with llama.cpp: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
        )
    name = file.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise _refused(file, "general.architecture", f"one of {known}", _ELSEWHERE)
    return found


def read_file(path: Path) -> GGUFFile:
    """A file's header. Raises ModelError."""
    try:
        return GGUFFile.read(path)
    except FileError as error:
        raise ModelError(str(error)) from None


def gguf_config(file: GGUFFile) -> ConfigFile:
    """The model's configuration under the names of a `config.json`; its errors name the metadata's
    own keys. Raises ModelError."""
    family = architecture_of(file).family
    prefix = f"{file.metadata['general.architecture']}."
    _refuse_unknown(file, prefix)
    names = {name: prefix + key for name, key in _KEYS.items()}
    values: dict[str, Any] = {
        name: _scalar(file, key) for name, key in names.items() if key in file.metadata
    }
    for name in sorted(_REQUIRED - values.keys()):
        raise _refused(file, names[name], "a number", "convert the model again")
    values["model_type"] = family
    values["vocab_size"] = _vocab_size(file)
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    values["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    values["dtype"] = _dtype(file)
    for name, roles in _TOKENS.items():
        keys = [f"tokenizer.ggml.{role}_token_id" for role in roles]
        names[name] = keys[0]
        values[name] = [_scalar(file, key) for key in keys if key in file.metadata]
    names |= {
        "rope_type": f"{prefix}rope.scaling.type",
        "factor": f"{prefix}rope.scaling.factor",
        "original_max_position_embeddings": f"{prefix}rope.scaling.original_context_length",
    }
    values["rope_scaling"] = _rope_scaling(file, prefix)
    config = ConfigFile(file.path, values, names)
    _check_heads(config, file, prefix)
    return config


def _refused(file: GGUFFile, key: str, expected: str, remedy: str) -> ModelError:
    return ModelError(str(file.error(key, expected, remedy)))


def _says(file: GGUFFile, key: str, value: int | str, default: int | str) -> bool:
    """Whether a key has this value; an array has none."""
    found = file.metadata.get(key, default)
    return type(found) is type(value) and bool(found == value)


def _scalar(file: GGUFFile, key: str) -> Any:
    """A value as it could be in a `config.json`. llama.cpp stores some counts per layer, as arrays:
    one value if all are equal."""
    value = file.metadata[key]
    if isinstance(value, np.ndarray):
        if value.size == 0 or (value != value.flat[0]).any():
            raise _refused(file, key, "one number, the same for all layers", _ELSEWHERE)
        return value.flat[0].item()
    return value


def _refuse_unknown(file: GGUFFile, prefix: str) -> None:
    known = {*_KEYS.values(), *_MEANINGLESS, *(f"rope.scaling.{key}" for key in _ROPE)}
    known |= {"attention.value_length", "rope.dimension_count"}
    for key in file.metadata:
        rest = key.removeprefix(prefix)
        if rest != key and rest not in known and not _is_off(rest, file.metadata[key]):
            raise ModelError(
                f"{file.path} has the key {shorten(key)} = {shorten(repr(file.metadata[key]))}, "
                f"which this decoder does not know: {_ELSEWHERE}."
            )


_OFF: Mapping[str, Any] = {
    "use_parallel_residual": False,
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
}
"""Values with which these keys change nothing."""


def _is_off(key: str, value: Any) -> bool:
    return key in _OFF and not isinstance(value, (np.ndarray, list)) and bool(value == _OFF[key])


def _vocab_size(file: GGUFFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        shape = "missing" if table is None else f"of shape {table.shape}"
        raise ModelError(
            f"tensor 'token_embd.weight' in {file.path} is {shape}: expected a row per token; "
            "convert the model again."
        )
    return table.shape[0]


def _dtype(file: GGUFFile) -> str:
    """The number format to compute in: that of the matrices, float16 if these are quantized."""
    kinds = {each.kind.name for each in file.tensors.values() if len(each.shape) > 1}
    if kinds == {"F32"}:
        return "float32"
    return "bfloat16" if "BF16" in kinds else "float16"


def _rope_scaling(file: GGUFFile, prefix: str) -> dict[str, Any] | None:
    key = f"{prefix}rope.scaling.type"
    plain = _says(file, key, "none", "none")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if not plain:
            raise _refused(file, key, f"'none' beside the tensor {ROPE_FACTORS!r}", _ELSEWHERE)
        return llama3_scaling(file, factors, _theta(file, prefix))
    if plain:
        return None
    kind = file.metadata[key]
    if not isinstance(kind, str):
        raise _refused(file, key, "a name", "convert the model again")
    scaling: dict[str, Any] = {"rope_type": kind}
    for name, own in (
        ("factor", "factor"),
        ("original_max_position_embeddings", "original_context_length"),
    ):
        if (own_key := f"{prefix}rope.scaling.{own}") in file.metadata:
            scaling[name] = _scalar(file, own_key)
    return scaling


def _theta(file: GGUFFile, prefix: str) -> Any:
    return file.metadata.get(f"{prefix}rope.freq_base", 10_000.0)


def _check_heads(config: ConfigFile, file: GGUFFile, prefix: str) -> None:
    """The other two sizes of a head, where a file names them, must be the same."""
    head_dim = config.optional_integer("head_dim")
    if head_dim is None:
        heads = config.integer("num_attention_heads")
        head_dim = config.integer("hidden_size") // heads
    for own in ("attention.value_length", "rope.dimension_count"):
        if (key := prefix + own) in file.metadata and _scalar(file, key) != head_dim:
            raise _refused(file, key, f"{head_dim}, the size of a head", _ELSEWHERE)
