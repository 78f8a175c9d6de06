"""The gains and costs of splitting decode attention's contexts, by number of parts.

Programs and bytes are counted with the formulas that tests compare with the interpreter's counts.
Seconds are modelled for a device: attention is limited by memory, a processor without a program
moves nothing, and one with a program moves at most its share of the bandwidth. (A single processor
can move more than its share, so a real GPU gains less from the first parts.) Launches are not
included: one for a single part, two for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.hardware import DEVICES, DeviceSpec
from minserve.kernels.counts.least import split_attention
from minserve.kernels.occupancy import SPLIT_WARPS, num_splits, split_programs, tile_shape
from minserve.spec import MixerSpec

PARTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class SplitCost:
    """One layer's decode attention with every context in this many parts."""

    parts: int
    programs: int
    cached_bytes: int
    """Keys and values, queries and the result: the bytes that any kernel moves."""
    parts_bytes: int
    """Partial results, written and read again."""
    modelled_s: float

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.cached_bytes + self.parts_bytes


@dataclass(frozen=True)
class Splitting:
    """One layer of one model on one device, whose contexts may be split."""

    mixer: MixerSpec
    device: DeviceSpec
    requests: int
    context: int
    """Tokens of each request."""
    itemsize: int = 2

    def cost(self, parts: int) -> SplitCost:
        """The cost with every context in `parts` parts, each of at least one key."""
        bandwidth, processors = limits(self.device)
        heads = self.mixer.heads
        shape = (self.requests, *heads, self.context)
        moved = split_attention(*shape, parts, self.itemsize)
        bare = split_attention(*shape, 1, self.itemsize)
        partial = moved.written - bare.written
        programs = self.requests * heads.num_kv_heads * parts
        merging = self.requests * heads.num_heads
        written = partial if parts > 1 else bare.written
        first = (bare.read + written) / (bandwidth * min(1.0, programs / processors))
        second = 0.0  # A single part is the result: nothing to merge.
        if parts > 1:
            second = (partial + bare.written) / (bandwidth * min(1.0, merging / processors))
        return SplitCost(parts, programs, bare.total, 2 * partial, first + second)

    def chosen(self) -> int:
        """The number of parts that the engine chooses."""
        _, processors = limits(self.device)
        heads = self.mixer.heads
        dim = 1 << (heads.head_dim - 1).bit_length()
        _, tile_keys, _ = tile_shape(dim, self.itemsize)
        # For compute capability 8.0: if registers are the limit, as for the usual head sizes, 9.0
        # runs no more programs.
        at_once = processors * split_programs(dim, self.itemsize, SPLIT_WARPS, 80)
        programs = self.requests * heads.num_kv_heads
        return num_splits(programs, self.context, at_once, tile_keys)

    def costs(self, parts: Sequence[int] = PARTS) -> list[SplitCost]:
        """The costs of several numbers of parts, in order; omits parts shorter than a key."""
        return [self.cost(count) for count in parts if count <= self.context]


def limits(device: DeviceSpec) -> tuple[float, int]:
    """Bytes per second, and processors. Raises ValueError if the data sheet has no figure."""
    if device.memory_bytes_per_s is None or device.processors is None:
        able = ", ".join(n for n, d in DEVICES.items() if d.processors and d.memory_bytes_per_s)
        raise ValueError(
            f"{device.name}: no sourced figure for bandwidth or processors; there are for {able}"
        )
    return device.memory_bytes_per_s, device.processors


def losing_from(splitting: Splitting, parts: int, most: int = 4096) -> int | None:
    """The fewest requests with which `parts` parts are slower than one, everything else equal; None
    if that is more than `most`."""
    for requests in range(1, most + 1):
        each = Splitting(
            splitting.mixer, splitting.device, requests, splitting.context, splitting.itemsize
        )
        if each.cost(parts).modelled_s > each.cost(1).modelled_s:
            return requests
    return None
