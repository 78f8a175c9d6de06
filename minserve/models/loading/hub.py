"""Finds the directory, or the GGUF file, of a model that a user names.

A name is an existing directory, a file that ends in ".gguf", or a Hugging Face hub name "org/name";
`minserve.loading` resolves zoo names. Knows nothing about what is in the directory.
"""

from __future__ import annotations

import re
from pathlib import Path

from minserve.files.json_file import shorten
from minserve.models.errors import ModelError

_MOST_HUB_CHARS = 2 * 96 + 1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights in one format, configurations, and every kind of tokenizer file.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "tokenizer*"]
# Mistral's and Meta's own formats are in the same repositories and would double the download.
_UNWANTED = ["consolidated*", "original/*", "*.bin", "*.pt", "*.pth", "*.gguf", "onnx/*"]


def resolve_model(model: str | Path) -> Path:
    """The directory or the GGUF file that holds a model; downloads it if the name is a hub name.

    Raises ModelError if there is no such directory or file, or if the hub cannot be reached or
    refuses.
    """
    check_model_name(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.exists():
        raise ModelError(
            f"{path} is a file: give the Hugging Face directory that holds config.json and the "
            ".safetensors weights, or a .gguf file."
        )
    name = str(model)
    if path.suffix == ".gguf":  # "org/name.gguf" would be a name on the hub
        raise ModelError(f"no model {shorten(repr(name), 200)}: there is no such file.")
    is_hub_name = len(name) <= _MOST_HUB_CHARS and _HUB_NAME.fullmatch(name)
    if isinstance(model, Path) or name.startswith("zoo/") or not is_hub_name:
        raise ModelError(
            f"no model {shorten(repr(name), 200)}: expected a directory with config.json and "
            ".safetensors weights, a .gguf file, or a Hugging Face hub name such as "
            '"Qwen/Qwen3-0.6B".'
        )
    return _download(name)


def check_model_name(model: str | Path) -> None:
    """Raise ModelError for a name that the file system cannot look up: longer than any path, in a
    directory that may not be entered, or under the home of a user that does not exist."""
    try:
        Path(model).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(f"no model {shorten(repr(str(model)), 200)}: {reason}.") from None


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
    except errors.HFValidationError as error:
        raise ModelError(f"no directory {name!r}, and that is no hub name: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        # OSError covers connection errors of every HTTP client the hub library has used.
        raise ModelError(
            f"no directory {name!r}, no copy of it in the local cache, and the Hugging Face hub "
            f"could not be reached ({type(error).__name__}): connect to the network (with "
            "HF_HUB_OFFLINE unset), or give the path of a directory."
        ) from error
