"""Which files of a directory are the checkpoint: safetensors, never pickle, never outside it.

Knows nothing about their contents.
"""

from __future__ import annotations

import os
from pathlib import Path

from minserve.files.json_file import FileError, read_json, shorten
from minserve.models.errors import ModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_INDEX_BYTES = 32 << 20
_MOST_SHARDS = 4096
"""Each shard is an open file and a mapping while it is read."""


def checkpoint_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that make up a checkpoint, in the order of their names; a GGUF file is
    one by itself.

    If there are both a single file and an index, the single file is used, as in transformers.
    Raises ModelError if there are none, if only pickle files exist, or if shards are missing.
    """
    if directory.is_file():
        return (directory,)
    single, index = directory / _SINGLE, directory / _INDEX
    if os.path.lexists(single):
        return (single,)
    if os.path.lexists(index):
        return _sharded(directory, index)
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    if found:
        raise ModelError(
            f"{directory} has {len(found)} .safetensors files but no {_INDEX} that says which "
            "belong together: save the model again with save_pretrained."
        )
    pickles = sorted(
        path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}")
    )
    if pickles:
        raise ModelError(
            f"{directory} has its weights only as pickle ({pickles[0]}), which can run any code "
            "when it is opened and is never read here. If you trust it, convert it once: "
            "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory) with "
            "transformers writes safetensors."
        )
    raise ModelError(f"{directory} has no .safetensors weights.")


def _sharded(directory: Path, index: Path) -> tuple[Path, ...]:
    try:
        content = read_json(index, max_bytes=_MAX_INDEX_BYTES)
    except FileError as error:
        raise ModelError(str(error)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(
            f"{index} is not a safetensors index: expected an object whose weight_map names the "
            "file of each tensor."
        )
    for name in weight_map.values():
        if not (isinstance(name, str) and _is_beside(name)):
            raise ModelError(
                f"{index} names {shorten(repr(name))}: expected .safetensors files beside it."
            )
    names = sorted(set(weight_map.values()))
    if len(names) > _MOST_SHARDS:
        raise ModelError(
            f"{index} names {len(names):,} files: expected at most {_MOST_SHARDS:,} shards."
        )
    for name in names:
        if not os.path.lexists(directory / name):
            raise ModelError(
                f"{directory} lacks {shorten(name)}, one of the {len(names)} shards in "
                f"{index.name}: download or copy it again."
            )
    return tuple(directory / name for name in names)


def _is_beside(name: str) -> bool:
    """Whether this is the plain name of a safetensors file, without a path to another directory."""
    return (
        name.endswith(".safetensors")
        and not any(character in name for character in "/\\\0")
        and len(name) <= 255
    )
