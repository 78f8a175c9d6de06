"""A timed call: an operator at a model's shape, its least bytes, and the implementations compared.

A case can make any number of new buffers, so that a timing can cycle through them. Bytes and FLOPs
are counted from shapes, by `kernels.counts.least` and by the pairs that attention sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.bench.gpu.timing import Call
from minserve.kernels.base import Ops

OURS = "minserve"
PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """The model whose shapes are used: Llama-3.1-8B, or a small one in a dry run."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    rows: int
    """Rows of a prefill chunk."""
    few: int
    """Rows of a decode step."""
    draws: int
    """Rows of logits."""
    decodes: tuple[tuple[int, int], ...]
    """(requests, context of each)."""
    prefills: tuple[tuple[int, int], ...]
    """(requests, tokens of each), whole prompts."""
    flex: frozenset[tuple[int, int]]
    """Sizes at which flex attention is compiled too, which takes seconds for each."""


REAL = Sizes(
    4096, 32, 8, 128, 14_336, 128_256, 4096, 64, 256,
    decodes=((1, 4096), (8, 4096), (64, 1024), (64, 4096), (256, 1024), (1, 32_768)),
    prefills=((1, 2048), (1, 8192), (8, 1024)),
    flex=frozenset({(64, 4096), (1, 8192)}),
)  # fmt: skip
TOY = Sizes(
    64, 4, 2, 16, 96, 300, 5, 2, 1,
    decodes=((2, 40),), prefills=((1, 20),), flex=frozenset({(2, 40), (1, 20)}),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operator at one shape."""

    name: str
    shape: str
    moved: int
    """Least bytes of a call."""
    flops: int
    """FLOPs of products; 0 if bytes are the limit."""
    make: Callable[[], Mapping[str, Call]]
    """New buffers -> the call of each side on them."""
    uncapturable: frozenset[str] = frozenset()
    """Sides that make the device wait for the host."""


class Buffers:
    """Makes inputs for one set of operators, device and number format."""

    def __init__(self, ops: Ops, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self.ops, self.sizes, self.device, self.dtype = ops, sizes, device, dtype

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.device).to(self.dtype)

    def meta(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor without memory, for counting."""
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")
