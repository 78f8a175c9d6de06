"""How attention is launched: tiles, warps and stages, for each shape of heads.

Without tuning these are the defaults of `occupancy`, chosen by counting; `autotune` finds others by
timing. Knows nothing about how they choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minserve.kernels.occupancy import SPLIT_WARPS, split_programs, tile_shape

SPLIT_STAGES = 3
"""Tiles of keys and values in flight in a split decode, which only waits for them."""
RAGGED_STAGES = 2


@dataclass(frozen=True, order=True)
class Heads:
    """The properties of heads that a kernel's resources depend on."""

    dim: int
    """Head size, rounded up to a power of two, at least 16."""
    itemsize: int
    """Bytes of a number."""
    group: int
    """Query heads per KV head."""


@dataclass(frozen=True)
class Tile:
    """One way to launch an attention kernel."""

    rows: int
    """Query rows of a tile, if the kernel has a choice; 0: it has none."""
    keys: int
    warps: int
    stages: int
    programs: int = 0
    """For a split decode: programs that a multiprocessor runs at once."""


@dataclass(frozen=True)
class Tuning:
    """Tiles that replace the defaults."""

    ragged: Mapping[Heads, Tile] = field(default_factory=dict)
    split: Mapping[Heads, Tile] = field(default_factory=dict)

    def ragged_tile(self, heads: Heads) -> Tile:
        """The tile for attention over chunks."""
        return self.ragged.get(heads) or default_ragged(heads)

    def split_tile(self, heads: Heads, capability: int) -> Tile:
        """The tile for decode attention; `capability` as 80 for 8.0."""
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
