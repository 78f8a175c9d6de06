"""What layers keep for every token, and which of them share a block table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Retention = Literal["full", "window"]


@dataclass(frozen=True)
class CacheTensor:
    """Something a layer keeps for every token: `[num_heads, head_dim]`."""

    name: str
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer: what it keeps for each token, and for how long."""

    tensors: tuple[CacheTensor, ...]
    window: int | None = None
    """A token is not read any more once this many tokens have come after it. None: it is kept as
    long as its request."""

    @property
    def retention(self) -> Retention:
        """How pages of this cache are kept (`memory.groups`)."""
        return "full" if self.window is None else "window"

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in one layer's cache, at `itemsize` bytes per number."""
        return sum(each.num_heads * each.head_dim for each in self.tensors) * itemsize


@dataclass(frozen=True)
class CacheGroup:
    """Layers of one model with equal caches, so that they share one block table per request."""

    spec: CacheSpec
    layers: tuple[int, ...]
    model: str = ""
    """Whose layers these are: "" is the model that is served. A draft model beside it has a name of
    its own."""

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in all layers of the group, at `itemsize` bytes per number."""
        return self.spec.bytes_per_token(itemsize) * len(self.layers)
