"""The chapters' comparisons as data: base configuration, switch, workload, names.

The same as in the notebooks, which need packages that a GPU machine may not have; a test
compares the two.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minserve.bench.runs.memory import LADDER, RUNGS
from minserve.bench.runs.sessions import IDLE
from minserve.bench.workloads.heavy_tail import heavy_tail
from minserve.bench.workloads.traces import to_traffic
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.config import EngineConfig

_FLOAT32 = EngineConfig(dtype="float32")


@dataclass(frozen=True)
class ChapterRun:
    """One comparison, on `zoo/base`."""

    chapter: str
    base: EngineConfig
    switch: Mapping[str, Any]
    workload: Callable[[], Traffic]
    names: tuple[str, str]
    """Names of the side without the switch and of the side with it."""


def _random_prompts(seed: int, sizes: list[int]) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(2, 4000) for _ in range(size)] for size in sizes]


def _exponential(spread: float, mean: float, count: int, seed: int) -> list[int]:
    """All equal at spread 0, exponential at 1, with the same total up to rounding."""
    shape = [-math.log((rank + 0.5) / count) for rank in range(count)]
    scale = count / sum(shape)
    found = [max(1, round(mean * (1 + spread * (scale * x - 1)))) for x in shape]
    random.Random(seed).shuffle(found)
    return found


def _heavy_tail() -> Traffic:
    return to_traffic(heavy_tail(1.0, 64, 16), vocab_size=4096)


def _returning_sessions() -> Traffic:
    histories = _random_prompts(43, [160] * 24)
    draw = random.Random(44)
    back = draw.sample(histories, 24)
    prompts = histories + [old + [draw.randrange(2, 4000) for _ in range(8)] for old in back]
    return at_once(prompts, [fixed_length(2)] * 48)


def _unequal_answers() -> Traffic:
    lengths = [fixed_length(n) for n in _exponential(1.0, 24, 24, 45)]
    return at_once(_random_prompts(45, [24] * 24), lengths)


def _one_long_prompt() -> Traffic:
    lengths = [fixed_length(n) for n in [24] + [60] * 7 + [32]]
    return at_once(_random_prompts(45, [32] * 8 + [1900]), lengths)


def _four_essays() -> Traffic:
    lengths = [fixed_length(120 if n in (2, 3, 4, 5) else 6) for n in range(24)]
    return at_once(_random_prompts(45, [24] * 24), lengths)


def _equal_requests() -> Traffic:
    return at_once(_random_prompts(46, [40] * 4), [fixed_length(24)] * 4)


def _ragged_prompts() -> Traffic:
    lengths = [fixed_length(n) for n in _exponential(1.0, 12, 24, 2)]
    return at_once(_random_prompts(47, _exponential(1.0, 48, 24, 1)), lengths)


CHAPTERS: tuple[ChapterRun, ...] = (
    ChapterRun(
        "43a",
        LADDER.with_values(
            {**RUNGS["continuous, power of two"]}
            | {"memory.kv_bytes": 48 * 65_536, "scheduling.max_model_len": 300}
        ),
        {"memory.layout": "paged"},
        _heavy_tail,
        ("contiguous", "paged"),
    ),
    ChapterRun(
        "43b",
        IDLE.with_values({"memory.kv_bytes": 44 * 131_072, "scheduling.max_model_len": 200}),
        {"memory.host_bytes": 260 * 131_072},
        _returning_sessions,
        ("device alone", "with host"),
    ),
    ChapterRun(
        "45a",
        _FLOAT32.with_values(
            {
                "scheduling.policy": "static",
                "scheduling.max_num_seqs": 8,
                "scheduling.max_num_batched_tokens": 2048,
            }
        ),
        {"scheduling.policy": "continuous"},
        _unequal_answers,
        ("static", "continuous"),
    ),
    ChapterRun(
        "45b",
        _FLOAT32.with_values(
            {"scheduling.enable_chunked_prefill": False, "scheduling.max_num_seqs": 8}
        ),
        {"scheduling.enable_chunked_prefill": True},
        _one_long_prompt,
        ("whole", "chunked"),
    ),
    ChapterRun(
        "45c",
        _FLOAT32.with_values(
            {
                "scheduling.max_num_seqs": 4,
                "scheduling.mlfq_quantum": 8,
                "scheduling.starvation_limit_s": 600.0,
            }
        ),
        {"scheduling.order": "mlfq"},
        _four_essays,
        ("first come", "feedback"),
    ),
    ChapterRun(
        "46",
        _FLOAT32.with_values({"kernels.backend": "torch", "scheduling.max_num_seqs": 8}),
        {"kernels.backend": "triton"},
        _equal_requests,
        ("torch", "fused"),
    ),
    ChapterRun(
        "47",
        _FLOAT32.with_values(
            {
                "kernels.padding": "longest",
                "scheduling.max_num_seqs": 8,
                "scheduling.max_num_batched_tokens": 2048,
            }
        ),
        {"kernels.padding": "none"},
        _ragged_prompts,
        ("padded", "packed"),
    ),
)
