"""Headers of safetensors files, read and checked before any tensor: names, formats, shapes.

A file is eight bytes of length, a JSON header and the tensors' bytes, without a hole or an overlap.
Nothing in a header is used before it is known to be consistent in itself and with the file's size.
Knows nothing about models.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minserve.files.json_file import FileError, open_regular, parse_json, shorten
from minserve.models.errors import ModelError

_MAX_HEADER_BYTES = 16 << 20
"""Enough for a hundred thousand tensors."""
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
"""Whole bytes per number. Formats with half bytes are quantized, and are refused for
that reason anyway."""
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorHeader:
    """The header of one tensor."""

    path: Path
    dtype: str
    """safetensors' name: "F32", "BF16", ..."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one file by name. Raises ModelError, naming the file, for a damaged one."""
    try:
        with os.fdopen(open_regular(path, what="safetensors"), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there."
                )
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > size - 8:
                raise _unreadable(path, f"it ends after {size:,} bytes, within its header")
            if length > _MAX_HEADER_BYTES:
                raise _unreadable(
                    path, f"its header has {length:,} bytes and {_MAX_HEADER_BYTES:,} are allowed"
                )
            file.seek(8)
            encoded = file.read(length)
        entries = parse_json(encoded, path, what="a safetensors header")
    except FileError as error:
        raise ModelError(str(error)) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from None
    if not isinstance(entries, dict):
        raise _unreadable(path, "its header is no JSON object")
    entries.pop("__metadata__", None)
    spans = []
    found = {}
    for name, entry in entries.items():
        found[name], begin, end = _tensor(path, name, entry)
        spans.append((begin, end, name))
    _check_spans(path, sorted(spans), size - 8 - length)
    return found


def _tensor(path: Path, name: str, entry: Any) -> tuple[TensorHeader, int, int]:
    """One header entry, and the first and last byte of its tensor."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(span) and len(span) == 2):
        raise _unreadable(
            path, f"tensor {shorten(repr(name))} lacks a dtype, a shape or a pair of data_offsets"
        )
    begin, end = span
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is not None and end - begin != math.prod(shape) * item_bytes:
        raise _unreadable(
            path,
            f"tensor {shorten(repr(name))} of {shorten(str(shape))} {dtype} numbers spans "
            f"{end - begin:,} bytes",
        )
    return TensorHeader(path, dtype, tuple(shape)), begin, end


def _are_sizes(value: Any) -> bool:
    """True for a list of sizes whose number and product are within bounds."""
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(each) is int and 0 <= each < 1 << 62 for each in value)
    )


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Check that tensors follow one another from the first byte to the last."""
    at = 0
    for begin, end, name in spans:
        if begin != at or end < begin:
            raise _unreadable(
                path,
                f"tensor {shorten(repr(name))} spans bytes {begin:,} to {end:,}, where byte "
                f"{at:,} comes next",
            )
        at = end
    if at != data_bytes:
        raise _unreadable(
            path, f"its tensors need {at:,} bytes and {data_bytes:,} follow the header"
        )


def _unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a readable safetensors file: {reason}; download or copy it again."
    )
