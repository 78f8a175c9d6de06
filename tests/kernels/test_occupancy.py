"""How many programs share a multiprocessor, and how many parts a decode is cut into."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minserve.kernels.occupancy import (
    GAIN,
    LEAST_KEYS,
    SPLIT_RESOURCES,
    num_splits,
    programs_per_multiprocessor,
    split_programs,
)

BUDGETS = Path(__file__).parent / "triton_budgets.json"


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "num_warps", "capability", "programs"),
    [
        (32, 0, 4, 80, 16),  # 64 warps
        (32, 0, 1, 80, 32),  # 32 programs
        (168, 0, 4, 90, 3),  # 3 x 4 warps x 5,376 registers; a fourth would need 86,016
        (72, 0, 4, 90, 7),  # 2,304 registers a warp
        (73, 0, 4, 90, 6),  # 2,336, handed out as 2,560
        (32, 80 << 10, 4, 80, 2),  # 164 KiB shared
        (32, 82 << 10, 4, 80, 1),  # 82 KiB and the system's own, twice: too much
        (32, 80 << 10, 4, 90, 2),  # 228 KiB
        (32, 75 << 10, 4, 90, 3),
        (32, 40 << 10, 4, 89, 2),  # 100 KiB
        (255, 300 << 10, 16, 80, 1),  # what does not fit at all is counted as one
        (32, 0, 4, 120, 16),  # unknown: the nearest below
        (32, 0, 4, 75, 16),
    ],
)
def test_programs_are_bounded_by_what_runs_out_first(
    registers: int, shared_bytes: int, num_warps: int, capability: int, programs: int
) -> None:
    found = programs_per_multiprocessor(registers, shared_bytes, num_warps, capability)
    assert found == programs


def test_the_table_is_what_the_kernel_compiles_to() -> None:
    budgets = json.loads(BUDGETS.read_text())
    for (dim, itemsize), needed in SPLIT_RESOURCES.items():
        name = f"split attention, head size {dim}" + (", float32" if itemsize == 4 else "")
        targets = budgets[name].values()
        registers = max(target["registers"] for target in targets)
        assert needed == (registers, max(target["shared_bytes"] for target in targets)), name


def test_an_h200_holds_three_programs_of_head_size_128_a_multiprocessor() -> None:
    assert split_programs(128, 2, 4, 90) == 3
    assert split_programs(64, 2, 4, 90) == 6


def test_the_number_of_parts_fills_whole_waves() -> None:
    # 132 multiprocessors of 3 programs: 396 at once.
    assert num_splits(8, 8192, 396, 64) == 43  # 344 programs of 3 tiles: one wave
    assert num_splits(396, 8192, 396, 64) == 1  # a full wave already
    assert num_splits(397, 8192, 396, 64) == 4  # whole: two waves, the second all but empty
    assert num_splits(512, 8192, 396, 64) == 2  # 3 waves of 64 tiles, where 1 part takes 2 of 128
    assert num_splits(100_000, 8192, 396, 64) == 1
    assert num_splits(8, 300, 396, 64) == 2  # no more than the keys are worth
    assert num_splits(1, 1, 396, 64) == 1


@given(
    programs=st.integers(1, 5000),
    longest=st.integers(1, 200_000),
    at_once=st.integers(1, 2000),
    tile_keys=st.sampled_from([16, 32, 64]),
)
def test_parts_are_worth_it(programs: int, longest: int, at_once: int, tile_keys: int) -> None:
    def time(parts: int) -> int:
        return -(-programs * parts // at_once) * -(-longest // (parts * tile_keys))

    parts = num_splits(programs, longest, at_once, tile_keys)
    assert parts >= 1 and (parts == 1 or longest // parts >= LEAST_KEYS)
    # Fewer would be slower, and nothing allowed is much faster.
    assert parts == 1 or time(parts - 1) > time(parts)
    for other in range(1, max(1, min(8, longest // LEAST_KEYS)) + 1):
        assert time(parts) <= GAIN * time(other)
