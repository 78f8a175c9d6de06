"""From what a user writes to a model directory, and from a directory to what it says about itself.

A name is an existing directory or a Hugging Face hub name "org/name"; zoo names are resolved above
this room, by `minserve.llm`. Knows nothing about tensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minserve.models.config_file import ConfigFile
from minserve.models.errors import ModelError
from minserve.models.families import spec_from_config
from minserve.spec import ModelSpec

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights in one format, configurations, and every kind of tokenizer file.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "tokenizer*"]
# Mistral's and Meta's own layouts lie beside Hugging Face's and would double the download.
_UNWANTED = ["consolidated*", "original/*", "*.bin", "*.pt", "*.pth", "*.gguf", "onnx/*"]


def resolve_model_dir(model: str | Path) -> Path:
    """The directory that holds a model, downloading it from the hub when the name is a hub name.

    Raises ModelError when there is no such directory, or the hub cannot be reached or refuses.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            f"{path} is a file: give the Hugging Face directory that holds config.json and the "
            ".safetensors weights."
        )
    name = str(model)
    if isinstance(model, Path) or name.startswith("zoo/") or not _HUB_NAME.fullmatch(name):
        raise ModelError(
            f"no model {name!r}: expected a directory with config.json and .safetensors weights, "
            'or a Hugging Face hub name such as "Qwen/Qwen3-0.6B".'
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} is a gated model: accept its terms on its Hugging Face page, then log in "
            "with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"no directory {name!r}, and the Hugging Face hub has no model of that name that you "
            "may see: check the spelling, or log in with `hf auth login` if it is private."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        # OSError covers connection errors of every HTTP client the hub library has used.
        raise ModelError(
            f"no directory {name!r}, and it could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}) and is not in the local cache: connect to the network "
            "(HF_HUB_OFFLINE must not be set), or give the path of a directory."
        ) from error


def load_spec(model: str | Path) -> ModelSpec:
    """What the model at a directory or hub name is, from its `config.json` alone.

    End-of-sequence ids come from `generation_config.json` when it names them.
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
    generation = _generation_config(directory)
    ends = generation.tokens("eos_token_id") if generation is not None else ()
    return spec_from_config(ConfigFile.read(path), ends or None)


_RENAMED = {"max_new_tokens": "max_tokens"}
_KEPT = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def load_generation_defaults(model: str | Path) -> dict[str, Any]:
    """The sampling defaults of `generation_config.json`, under the names of `SamplingParams`.

    Empty when the file is missing or says nothing about sampling. Only an explicit
    `do_sample: false` means greedy; a file that gives a temperature without `do_sample` means it.
    """
    generation = _generation_config(resolve_model_dir(model))
    if generation is None:
        return {}
    found = {
        _RENAMED.get(key, key): generation.get(key)
        for key in _KEPT
        if generation.get(key) is not None
    }
    if generation.get("do_sample") is False:
        for key in ("top_k", "top_p", "min_p"):
            found.pop(key, None)
        found["temperature"] = 0.0
    return found


def _generation_config(directory: Path) -> ConfigFile | None:
    path = directory / "generation_config.json"
    return ConfigFile.read(path) if path.is_file() else None
