"""Numbers of a GGUF tensor: mapped where torch has the format, otherwise computed from its blocks.

A block is 32 numbers with one scale (Q4_0, Q8_0), or a scale and an offset (Q4_1), as llama.cpp's
`ggml-quants.c` lays them out: of two numbers in a byte, the low half belongs to the block's first
sixteen. K-quants and the five-bit formats are computed by the `gguf` package, if it is installed.
Knows nothing about which tensor is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.files.gguf_file import BlockKind, GGUFTensor
from minserve.models.errors import ModelError

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Formats that are read as they are."""
_BLOCKS_AT_ONCE = 1 << 13
"""About a megabyte of results: what is computed beside a tensor stays in the cache."""


def _q8_0(blocks: Tensor) -> Tensor:
    return _floats(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _floats(blocks, 0) * (_halves(blocks[:, 2:]) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _floats(blocks, 0) * _halves(blocks[:, 4:]) + _floats(blocks, 2)


def _floats(blocks: Tensor, at: int) -> Tensor:
    """`[num_blocks, 1]`: the float16 at a byte of each block, as float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _halves(packed: Tensor) -> Tensor:
    """`[num_blocks, 32]`: the low halves of 16 bytes, then the high ones, as float32."""
    return torch.cat((packed & 15, packed >> 4), dim=1).float()


_OWN: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}
"""`[num_blocks, block bytes]` to float32 `[num_blocks, 32]`."""


def read_numbers(path: Path, content: Any, tensor: GGUFTensor) -> Tensor:
    """The numbers of a tensor of a mapped file: a view of the mapping, or a float32 copy.

    Raises ModelError for a format that needs the `gguf` package where that is not installed.
    """
    kind = tensor.kind
    if kind.name in STORED:
        count = tensor.nbytes // kind.nbytes
        stored = torch.frombuffer(
            content, dtype=STORED[kind.name], count=count, offset=tensor.offset
        )
        return stored.view(tensor.shape)
    compute = _computing(path, tensor)
    raw = torch.frombuffer(content, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.offset)
    blocks = raw.view(-1, kind.nbytes)
    numbers = torch.empty(len(blocks), kind.numbers)
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        numbers[start : start + _BLOCKS_AT_ONCE] = compute(blocks[start : start + _BLOCKS_AT_ONCE])
    return numbers.view(tensor.shape)


def check_kind(path: Path, tensor: GGUFTensor) -> None:
    """Raise ModelError for a format that cannot be computed here."""
    if tensor.kind.name not in STORED:
        _computing(path, tensor)


def _computing(path: Path, tensor: GGUFTensor) -> Callable[[Tensor], Tensor]:
    kind = tensor.kind
    return _OWN.get(kind.name) or _by_package(path, tensor.name, kind)


def _by_package(path: Path, name: str, kind: BlockKind) -> Callable[[Tensor], Tensor]:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        own = ", ".join((*STORED, *_OWN))
        raise ModelError(
            f"tensor {name!r} in {path} is stored as {kind.name}, which needs the gguf package: "
            f"pip install 'minserve[gguf]', or use a file of {own}."
        ) from None
    number = GGMLQuantizationType[kind.name]
    return lambda blocks: torch.from_numpy(dequantize(blocks.numpy(), number))
