"""GGUF files: metadata and tensor table, read and checked before any tensor.

The layout is that of llama.cpp's `docs/gguf.md`: magic, version, two counts, the metadata as typed
key-value pairs, a table of tensors, padding, and the tensors' bytes, each at a multiple of the
alignment. Every count is compared with the bytes that are left before anything of that size is
made. Knows nothing about models, tokenizers, or what a quantized block contains.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minserve.files.gguf_values import GGUFError, Reader, refusal
from minserve.files.json_file import FileError, open_regular, shorten

MAX_HEADER_BYTES = 64 << 20
"""Five times the largest metadata we know, of 200,000 tokens and 440,000 merges."""
_MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 16
_LEAST_PAIR_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class BlockKind:
    """A number format: blocks of `numbers` numbers in `nbytes` bytes."""

    name: str
    numbers: int
    nbytes: int


KINDS = {
    0: BlockKind("F32", 1, 4),
    1: BlockKind("F16", 1, 2),
    2: BlockKind("Q4_0", 32, 18),
    3: BlockKind("Q4_1", 32, 20),
    6: BlockKind("Q5_0", 32, 22),
    7: BlockKind("Q5_1", 32, 24),
    8: BlockKind("Q8_0", 32, 34),
    10: BlockKind("Q2_K", 256, 84),
    11: BlockKind("Q3_K", 256, 110),
    12: BlockKind("Q4_K", 256, 144),
    13: BlockKind("Q5_K", 256, 176),
    14: BlockKind("Q6_K", 256, 210),
    30: BlockKind("BF16", 1, 2),
}
"""By llama.cpp's `ggml_type`."""


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the tensor table."""

    name: str
    kind: BlockKind
    shape: tuple[int, ...]
    """As torch has it: rows first. The file has the dimensions in the opposite order."""
    offset: int
    """Of its first byte in the file."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.kind.numbers * self.kind.nbytes


@dataclass(frozen=True)
class GGUFFile:
    """A checked header. `metadata` has numbers, booleans, strings, and lists (of strings) or numpy
    arrays (of numbers)."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @classmethod
    def read(cls, path: Path) -> GGUFFile:
        """Read and check a file's header. Raises GGUFError, naming the file and the key or tensor,
        and nothing else."""
        with mapped(path) as content:
            reader = Reader(path, content, min(len(content), MAX_HEADER_BYTES))
            num_tensors, num_pairs = _counts(reader, bytes(content[: len(_LFS_POINTER)]))
            metadata: dict[str, Any] = {}
            for _ in range(num_pairs):
                key = reader.string("a key")
                if key in metadata:
                    raise reader.error(f"key {shorten(repr(key))} is there twice")
                metadata[key] = reader.value(key)
            alignment = _alignment(path, metadata)
            entries = [_entry(reader) for _ in range(num_tensors)]
            start = _aligned(reader.at, alignment)
            tensors: dict[str, GGUFTensor] = {}
            for tensor in entries:
                if tensor.name in tensors:
                    raise reader.error(f"tensor {shorten(repr(tensor.name))} is there twice")
                tensors[tensor.name] = tensor
            placed = dict(_placed(path, tensors, start, alignment, len(content)))
            return cls(path, metadata, placed)

    def error(self, key: str, expected: str, remedy: str) -> GGUFError:
        """An error about one key of the metadata, to be raised by the caller."""
        value = self.metadata.get(key)
        given = "missing" if value is None else shorten(repr(value))
        return GGUFError(f"{key} in {self.path} is {given}: expected {expected}; {remedy}.")


class mapped:
    """A regular file's bytes, mapped; changes stay in memory, so torch may view them. What views
    them keeps the mapping alive after the context has ended. Raises GGUFError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> mmap.mmap:
        try:
            descriptor = open_regular(self._path, what="GGUF")
        except FileError as error:
            raise GGUFError(str(error)) from None
        try:
            if os.fstat(descriptor).st_size == 0:
                raise refusal(self._path, "it is empty")
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise refusal(self._path, error.strerror or type(error).__name__) from None
        finally:
            os.close(descriptor)

    def __exit__(self, *error: object) -> None:
        """Nothing: the mapping ends with the last view of it."""


def _counts(reader: Reader, start: bytes) -> tuple[int, int]:
    """The numbers of tensors and of key-value pairs, in a file that is GGUF of a known version."""
    if start == _LFS_POINTER:
        raise GGUFError(
            f"{reader.path} is a Git LFS pointer, not the model: run `git lfs pull` there."
        )
    if start[:4] != _MAGIC:
        raise reader.error(f"it begins with {start[:4]!r}, and a GGUF file with {_MAGIC!r}")
    reader.at = len(_MAGIC)
    version = reader.uint32("its version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in _VERSIONS:
            raise reader.error(
                f"its version {swapped} is stored big-endian: expected little-endian"
            )
        raise reader.error(
            f"it has version {version}: expected {' or '.join(map(str, _VERSIONS))}; convert the "
            "model again with a current llama.cpp"
        )
    num_tensors = reader.uint64("its number of tensors")
    num_pairs = reader.uint64("its number of keys")
    for count, least, what in (
        (num_tensors, _LEAST_TENSOR_BYTES, "tensors"),
        (num_pairs, _LEAST_PAIR_BYTES, "keys"),
    ):
        reader.check_count(count, least, f"its header counts {count:,} {what}")
    return num_tensors, num_pairs


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    is_power = type(value) is int and value > 0 and value & (value - 1) == 0
    if not (is_power and 8 <= value <= _LARGEST_ALIGNMENT):
        raise refusal(
            path,
            f"{_ALIGNMENT} is {shorten(repr(value))}: expected a power of two between 8 and "
            f"{_LARGEST_ALIGNMENT:,}",
        )
    return int(value)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _entry(reader: Reader) -> GGUFTensor:
    """One entry of the table; its offset is still relative to the first tensor."""
    name = reader.string("a tensor's name")
    what = f"tensor {shorten(repr(name))}"
    dimensions = reader.uint32(what)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise reader.error(
            f"{what} has {dimensions:,} dimensions: expected 1 to {_MOST_DIMENSIONS}"
        )
    shape = tuple(reader.uint64(what) for _ in range(dimensions))[::-1]
    number = reader.uint32(what)
    kind = KINDS.get(number)
    if kind is None:
        known = ", ".join(f"{each.name} ({key})" for key, each in KINDS.items())
        raise reader.error(f"{what} has type {number}: expected one of {known}")
    if not all(0 < size < 1 << 48 for size in shape) or math.prod(shape) >= 1 << 48:
        raise reader.error(f"{what} has shape {shorten(str(shape))}: expected sizes from 1")
    if shape[-1] % kind.numbers:
        raise reader.error(
            f"{what} has rows of {shape[-1]:,} numbers: expected a multiple of {kind.numbers}, the "
            f"block of {kind.name}"
        )
    return GGUFTensor(name, kind, shape, reader.uint64(what))


def _placed(
    path: Path, tensors: Mapping[str, GGUFTensor], start: int, alignment: int, size: int
) -> Iterator[tuple[str, GGUFTensor]]:
    """The tensors with their places in the file, once these are known to follow one another."""
    at = 0
    for tensor in sorted(tensors.values(), key=lambda each: each.offset):
        what = f"tensor {shorten(repr(tensor.name))}"
        if tensor.offset % alignment:
            raise refusal(
                path, f"{what} begins at {tensor.offset:,}, no multiple of {alignment} bytes"
            )
        if tensor.offset != at:
            raise refusal(
                path,
                f"{what} begins at {tensor.offset:,}, where byte {at:,} of the data comes next",
            )
        end = start + tensor.offset + tensor.nbytes
        if end > size:
            raise refusal(path, f"{what} ends at byte {end:,}, and the file has {size:,}")
        at = _aligned(tensor.offset + tensor.nbytes, alignment)
        yield (
            tensor.name,
            GGUFTensor(tensor.name, tensor.kind, tensor.shape, start + tensor.offset),
        )
