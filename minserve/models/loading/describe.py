"""What a model directory says about its model: the spec, and the sampling parameters that its
authors recommend.

Read from `config.json` and `generation_config.json`, or from a GGUF file's metadata, without
reading the weights.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minserve.models.config_file import ConfigFile
from minserve.models.errors import ModelError
from minserve.models.loading.checkpoint import stored_dtype
from minserve.models.loading.families import spec_from_config
from minserve.models.loading.gguf.config import gguf_config, read_file
from minserve.models.loading.hub import resolve_model
from minserve.spec import ModelSpec


def load_spec(model: str | Path) -> ModelSpec:
    """The spec of the model in a directory or GGUF file, or at a hub name.

    End-of-sequence ids come from `generation_config.json` if it names them, and the number format
    comes from the weights if `config.json` lacks it. Raises ModelError if the model is not found,
    is of an unknown family, or uses a feature that this decoder does not have.
    """
    directory = resolve_model(model)
    if directory.is_file():
        return spec_from_config(gguf_config(read_file(directory)))
    path = directory / "config.json"
    if not os.path.lexists(path):
        raise ModelError(
            f"{directory} has no config.json: expected a directory in the Hugging Face layout, as "
            "save_pretrained writes it."
        )
    config = ConfigFile.read(path)
    if config.dtype() is None:
        config = config.with_defaults({"dtype": stored_dtype(directory)})
    generation = _generation_config(directory)
    ends = generation.tokens("eos_token_id") if generation is not None else ()
    return spec_from_config(config, ends or None)


_RANGES: dict[str, dict[str, float]] = {
    "temperature": {"at_least": 0.0, "at_most": 1e6},
    "top_p": {"above": 0.0, "at_most": 1.0},
    "min_p": {"at_least": 0.0, "at_most": 1.0},
    "repetition_penalty": {"above": 0.0, "at_most": 1e6},
}
SAMPLING_KEYS = ("do_sample", "top_k", "max_new_tokens", *_RANGES)


def load_generation_defaults(model: str | Path) -> dict[str, Any]:
    """The sampling defaults of `generation_config.json`, by Hugging Face's names.

    Only keys in `SAMPLING_KEYS` that have a value; empty if the file is missing, as it always is
    beside a GGUF file, which may be any directory's. Raises ModelError
    for a value of another type, or outside its range.
    """
    generation = _generation_config(resolve_model(model))
    if generation is None:
        return {}
    found: dict[str, Any] = {}
    for key in SAMPLING_KEYS:
        if generation.get(key) is None:
            continue
        if key == "do_sample":
            found[key] = generation.flag(key)
        elif key in _RANGES:
            found[key] = generation.number(key, **_RANGES[key])
        else:
            found[key] = generation.integer(key, at_least=-1 if key == "top_k" else 1)
    return found


def _generation_config(directory: Path) -> ConfigFile | None:
    path = directory / "generation_config.json"
    known = directory.is_dir() and os.path.lexists(path)
    return ConfigFile.read(path) if known else None
