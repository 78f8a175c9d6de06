"""What a model directory says about its model: the spec, and how its makers sample from it.

Read from `config.json` and `generation_config.json`, without touching the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minserve.models.checkpoint import stored_dtype
from minserve.models.config_file import ConfigFile
from minserve.models.errors import ModelError
from minserve.models.families import spec_from_config
from minserve.models.hub import resolve_model_dir
from minserve.spec import ModelSpec


def load_spec(model: str | Path) -> ModelSpec:
    """What the model at a directory or hub name is.

    End-of-sequence ids come from `generation_config.json` when it names them, and the number format
    from the weights when `config.json` leaves it out.
    Raises ModelError when the model is not found, of an unknown family, or uses a feature this
    decoder does not have.
    """
    directory = resolve_model_dir(model)
    path = directory / "config.json"
    if not path.is_file():
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


SAMPLING_KEYS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
)


def load_generation_defaults(model: str | Path) -> dict[str, Any]:
    """The sampling defaults of `generation_config.json`, by Hugging Face's names.

    Only keys out of `SAMPLING_KEYS` that have a value; empty when the file is missing.
    """
    generation = _generation_config(resolve_model_dir(model))
    if generation is None:
        return {}
    return {key: generation.get(key) for key in SAMPLING_KEYS if generation.get(key) is not None}


def _generation_config(directory: Path) -> ConfigFile | None:
    path = directory / "generation_config.json"
    return ConfigFile.read(path) if path.is_file() else None
