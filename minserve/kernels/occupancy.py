"""How many programs a multiprocessor runs at once, and into how many parts a decode is split.

Pure functions of counts: no device is needed. The multiprocessor's sizes are those of NVIDIA's CUDA
C programming guide, table "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

SPLIT_WARPS = 4
"""Warps of a program of the split decode."""
LEAST_KEYS = 128
"""Least keys of a part: with fewer, a separate program costs more than it saves."""
GAIN = 1.125
"""More parts must save an eighth of the time: the merge writes and reads each part again."""
WARP = 32
REGISTER_UNIT = 256
"""Registers are allocated to a warp in multiples of this."""
RESERVED_SHARED_BYTES = 1024
"""Shared memory of each program that is reserved for the system."""


@dataclass(frozen=True)
class Multiprocessor:
    """The resources that all programs on one multiprocessor share."""

    registers: int
    shared_bytes: int
    warps: int
    programs: int


MULTIPROCESSORS = {
    80: Multiprocessor(65536, 164 << 10, 64, 32),
    86: Multiprocessor(65536, 100 << 10, 48, 16),
    89: Multiprocessor(65536, 100 << 10, 48, 24),
    90: Multiprocessor(65536, 228 << 10, 64, 32),
}
"""By compute capability times ten; if one is not listed, the nearest below it is used."""

SPLIT_RESOURCES = {
    (16, 2): (78, 4864),
    (32, 2): (72, 11520),
    (64, 2): (80, 20736),
    (128, 2): (168, 39168),
    (256, 2): (168, 42112),
    (16, 4): (64, 7360),
    (32, 4): (62, 12416),
    (64, 4): (56, 13376),
    (128, 4): (70, 25792),
    (256, 4): (128, 50368),
}
"""Head size and bytes per number -> registers per thread and shared bytes per program of
`split_attention_kernel`: the larger of the values for 8.0 and 9.0, with up to 16 query heads per
KV head, as compiled by `resources` and checked against budgets in
`tests/kernels/test_occupancy.py`."""


def programs_per_multiprocessor(
    registers: int, shared_bytes: int, num_warps: int, capability: int
) -> int:
    """Programs that run at once on one multiprocessor: the smallest number allowed by its
    registers, shared memory, warps and slots, at least 1.

    `registers` per thread, `shared_bytes` per program, `capability` as 80 for 8.0.
    """
    known = [each for each in MULTIPROCESSORS if each <= capability]
    limits = MULTIPROCESSORS[max(known, default=80)]
    per_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    held = min(
        limits.registers // (per_warp * num_warps),
        limits.shared_bytes // (shared_bytes + RESERVED_SHARED_BYTES),
        limits.warps // num_warps,
        limits.programs,
    )
    return max(1, held)


def split_programs(dim: int, itemsize: int, num_warps: int, capability: int) -> int:
    """Programs of `split_attention_kernel` that a multiprocessor runs at once: `dim` is the head
    size rounded up to a power of two, `itemsize` the bytes of a number."""
    return programs_per_multiprocessor(*SPLIT_RESOURCES[dim, itemsize], num_warps, capability)


def tile_shape(dim: int, itemsize: int) -> tuple[int, int, int]:
    """Query rows, keys and warps of a tile, chosen so that no register spills on compute capability
    8.0 or 9.0 (`resources` compiles and counts; the budgets are in `tests/kernels`)."""
    if itemsize > 2 and dim > 32:
        return 32, 16, 8 if dim > 128 else 4
    if itemsize > 2 or dim > 128:
        return 32, 32, 4
    return 64, 64, 8 if dim > 64 else 4


@functools.lru_cache(maxsize=256)
def num_splits(num_programs: int, longest: int, at_once: int, tile_keys: int) -> int:
    """Parts of each context in a decode of `num_programs` (requests times KV heads).

    `longest`: the longest context in tokens; `at_once`: programs the device runs at once, its
    multiprocessors times `programs_per_multiprocessor`; `tile_keys`: keys a program processes at a
    time. Programs run in waves of `at_once`, and a partly filled wave costs as much as a full one.
    The time is modelled as waves times tiles per part; the result is the fewest parts whose time is
    within GAIN of the shortest. No part has fewer than LEAST_KEYS keys.
    """
    # With more than one wave, eight parts already reduce the unfilled part of the last
    # wave to an eighth.
    most = max(8, at_once // num_programs)
    most = max(1, min(most, longest // LEAST_KEYS))
    times = [
        -(-num_programs * parts // at_once) * -(-longest // (parts * tile_keys))
        for parts in range(1, most + 1)
    ]
    enough = GAIN * min(times)
    return next(parts for parts, time in enumerate(times, 1) if time <= enough)
