"""Writes GGUF files from the format's description, right or wrong on purpose.

Nothing in here comes from the code under test: numbers of types and formats are llama.cpp's own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 5, 6, 7, 8, 9, 10
_FORMATS = {UINT8: "<B", UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<B", UINT64: "<Q"}
F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 3, 6, 8, 12, 14, 30
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q5_0: (32, 22),
          Q8_0: (32, 34), Q4_K: (256, 144), Q6_K: (256, 210), BF16: (1, 2)}  # fmt: skip
"""Numbers and bytes of a block."""


def string(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: Any) -> bytes:
    """A value's type and bytes; a `(type, value)` pair says the type of a number or of the items of
    an array, and bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + string(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, list):
        value = (STRING, value)
    kind, items = value
    if not isinstance(items, list):
        return struct.pack("<I", kind) + struct.pack(_FORMATS[kind], items)
    encoded = b"".join(
        string(item) if kind == STRING else struct.pack(_FORMATS[kind], item) for item in items
    )
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + encoded


@dataclass
class Stored:
    """A tensor to be written: its shape as torch has it, its type, its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None
    """None: where it belongs."""


def dense(array: Any, kind: int = F32) -> Stored:
    """A tensor in a format that torch has too."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if kind == F16:
        data = array.astype("<f2").tobytes()
    elif kind == BF16:
        data = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    else:
        data = array.astype("<f4").tobytes()
    return Stored(array.shape, kind, data)


def random_blocks(shape: tuple[int, ...], kind: int, seed: int = 0) -> Stored:
    """A quantized tensor of random codes, with scales that are small and not zero."""
    rng = np.random.default_rng(seed)
    numbers, size = BLOCKS[kind]
    blocks = rng.integers(0, 256, (math.prod(shape) // numbers, size), dtype=np.uint8)
    # Where a format has its float16 numbers, by byte.
    places = {Q4_0: [0], Q4_1: [0, 2], Q5_0: [0], Q8_0: [0], Q4_K: [0, 2], Q6_K: [208]}[kind]
    for at in places:
        scales = rng.normal(0.0, 0.02, (len(blocks), 1)).astype("<f2")
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return Stored(shape, kind, blocks.tobytes())


@dataclass
class File:
    """A file to be written; what is given as a count, an alignment or a number may be a lie."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Stored] | Iterable[tuple[str | bytes, Stored]] = field(
        default_factory=dict
    )
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32
    extra_pairs: bytes = b""
    """Pairs behind those of `metadata`, already encoded."""

    def header(self) -> bytes:
        tensors = self._tensors()
        pairs = b"".join(string(key) + typed(value) for key, value in self.metadata.items())
        parts = [
            self.magic,
            struct.pack("<I", self.version),
            struct.pack("<Q", len(tensors) if self.num_tensors is None else self.num_tensors),
            struct.pack("<Q", len(self.metadata) if self.num_keys is None else self.num_keys),
            pairs + self.extra_pairs,
        ]
        at = 0
        for name, tensor in tensors:
            offset = at if tensor.offset is None else tensor.offset
            parts.append(string(name) + struct.pack("<I", len(tensor.shape)))
            parts.append(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1]))
            parts.append(struct.pack("<IQ", tensor.kind, offset))
            at += len(_padded(tensor.data, self.alignment))
        return b"".join(parts)

    def content(self) -> bytes:
        data = b"".join(_padded(tensor.data, self.alignment) for _, tensor in self._tensors())
        return _padded(self.header(), self.alignment) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path

    def but(self, **changes: Any) -> File:
        return replace(self, **changes)

    def _tensors(self) -> list[tuple[str | bytes, Stored]]:
        found = self.tensors
        return list(found.items() if isinstance(found, Mapping) else found)


def _padded(content: bytes, alignment: int) -> bytes:
    return content + b"\0" * (-len(content) % alignment)
