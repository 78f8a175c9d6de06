"""What cutting decode attention's contexts into parts gains and costs, part by part.

Programs and bytes are counted, by the formulas that tests compare with the interpreter's counts.
Seconds are modelled for a device: attention is bound by memory, a processor without a program moves
nothing, and one with a program at most its share of the bandwidth. (A lone processor can move more
than its share, so a real GPU gains less from the first parts.) Launches, one for one part and two
for more, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.hardware import DEVICES, DeviceSpec
from minserve.kernels.counts.least import split_attention
from minserve.kernels.occupancy import SPLIT_WARPS, num_splits, split_programs, tile_shape
from minserve.spec import AttentionSpec

PARTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class SplitCost:
    """One layer's decode attention with every context in so many parts."""

    parts: int
    programs: int
    cached_bytes: int
    """Keys and values, queries and the result: what any kernel moves."""
    parts_bytes: int
    """Partial results, written and read again."""
    modelled_s: float

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.cached_bytes + self.parts_bytes


@dataclass(frozen=True)
class Splitting:
    """One layer of one model on one device: what its contexts may be cut into."""

    mixer: AttentionSpec
    device: DeviceSpec
    requests: int
    context: int
    """Tokens of each request."""
    itemsize: int = 2

    def cost(self, parts: int) -> SplitCost:
        """With every context in `parts` parts, of at least a key each."""
        bandwidth, processors = limits(self.device)
        mixer = self.mixer
        shape = (self.requests, mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, self.context)
        moved = split_attention(*shape, parts, self.itemsize)
        bare = split_attention(*shape, 1, self.itemsize)
        partial = moved.written - bare.written
        programs = self.requests * mixer.num_kv_heads * parts
        merging = self.requests * mixer.num_heads
        written = partial if parts > 1 else bare.written
        first = (bare.read + written) / (bandwidth * min(1.0, programs / processors))
        second = 0.0  # One part is the result: there is nothing to merge.
        if parts > 1:
            second = (partial + bare.written) / (bandwidth * min(1.0, merging / processors))
        return SplitCost(parts, programs, bare.total, 2 * partial, first + second)

    def chosen(self) -> int:
        """The parts that the engine takes."""
        _, processors = limits(self.device)
        dim = 1 << (self.mixer.head_dim - 1).bit_length()
        _, tile_keys, _ = tile_shape(dim, self.itemsize)
        # Of compute capability 8.0: where registers bind, as at the usual head sizes, 9.0 holds
        # no more.
        at_once = processors * split_programs(dim, self.itemsize, SPLIT_WARPS, 80)
        programs = self.requests * self.mixer.num_kv_heads
        return num_splits(programs, self.context, at_once, tile_keys)

    def costs(self, parts: Sequence[int] = PARTS) -> list[SplitCost]:
        """Several, in order; none with parts shorter than a key."""
        return [self.cost(count) for count in parts if count <= self.context]


def limits(device: DeviceSpec) -> tuple[float, int]:
    """Bytes per second, and processors. Raises ValueError where the data sheet has no figure."""
    if device.memory_bytes_per_s is None or device.processors is None:
        able = ", ".join(n for n, d in DEVICES.items() if d.processors and d.memory_bytes_per_s)
        raise ValueError(
            f"{device.name}: no sourced figure for bandwidth or processors; there are for {able}"
        )
    return device.memory_bytes_per_s, device.processors


def losing_from(splitting: Splitting, parts: int, most: int = 4096) -> int | None:
    """The fewest requests with which `parts` parts are slower than one, everything else equal;
    None where that is more than `most`."""
    for requests in range(1, most + 1):
        each = Splitting(
            splitting.mixer, splitting.device, requests, splitting.context, splitting.itemsize
        )
        if each.cost(parts).modelled_s > each.cost(1).modelled_s:
            return requests
    return None
