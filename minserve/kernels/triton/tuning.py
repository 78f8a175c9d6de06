"""How attention is launched: tiles, warps and stages, for each shape of heads.

Without tuning these are the defaults of `occupancy`, chosen by counting; `autotune` finds others by
timing. Knows nothing about how these choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minserve.kernels.occupancy import SPLIT_WARPS, split_programs, tile_shape

SPLIT_STAGES = 3
"""Tiles of keys and values in flight in a split decode: it does nothing but wait for them."""
RAGGED_STAGES = 2


@dataclass(frozen=True, order=True)
class Heads:
    """What a kernel's resources depend on."""

    dim: int
    """Head size, rounded up to a power of two, 16 at least."""
    itemsize: int
    """Bytes of a number."""
    group: int
    """Query heads per KV head."""


@dataclass(frozen=True)
class Tile:
    """One way to launch an attention kernel."""

    rows: int
    """Query rows of a tile, where the kernel has a choice; 0: it has none."""
    keys: int
    warps: int
    stages: int
    programs: int = 0
    """Programs that a multiprocessor runs at once, of a split decode."""


@dataclass(frozen=True)
class Tuning:
    """Tiles that take the place of the defaults."""

    ragged: Mapping[Heads, Tile] = field(default_factory=dict)
    split: Mapping[Heads, Tile] = field(default_factory=dict)

    def ragged_tile(self, heads: Heads) -> Tile:
        """Of attention over chunks."""
        return self.ragged.get(heads) or default_ragged(heads)

    def split_tile(self, heads: Heads, capability: int) -> Tile:
        """Of decode attention; `capability` as 80 for 8.0."""
        return self.split.get(heads) or default_split(heads, capability)


def default_ragged(heads: Heads) -> Tile:
    """See `occupancy.tile_shape`."""
    rows, keys, warps = tile_shape(heads.dim, heads.itemsize)
    return Tile(rows, keys, warps, RAGGED_STAGES)


def default_split(heads: Heads, capability: int) -> Tile:
    """See `occupancy.split_programs`."""
    _, keys, _ = tile_shape(heads.dim, heads.itemsize)
    programs = split_programs(heads.dim, heads.itemsize, SPLIT_WARPS, capability)
    return Tile(0, keys, SPLIT_WARPS, SPLIT_STAGES, programs)
