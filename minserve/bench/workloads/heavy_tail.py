"""A trace whose lengths vary as in real ones: many short answers, a few very long ones.

`python -m minserve.bench.workloads.heavy_tail` writes the committed one,
`traces/heavy_tail.jsonl`: all requests wait at the start, prompts and answers are log-normal, and
an answer ends at the latest at a `max_tokens`, as callers usually set one. At spread 0 all
answers are equal, with the same total.
"""

from __future__ import annotations

import random
from math import exp
from pathlib import Path
from statistics import NormalDist

from minserve.bench.workloads.traces import TraceRow, write_mooncake

COMMITTED = Path(__file__).parent / "traces" / "heavy_tail.jsonl"
SEED, REQUESTS = 46, 256
PROMPT_MEAN, PROMPT_SPREAD = 8, 0.5
OUTPUT_MEAN, OUTPUT_SPREAD, OUTPUT_MOST = 16, 2.0, 270


def log_normal_lengths(count: int, mean: float, spread: float, most: int, seed: int) -> list[int]:
    """Lengths from 1 to `most` with this mean (up to rounding), at evenly spaced quantiles of a
    log-normal distribution, shuffled."""
    normal = NormalDist()
    shape = [exp(spread * normal.inv_cdf((rank + 0.5) / count)) for rank in range(count)]
    low, high = 0.0, float(most) * max(1.0, 1 / min(shape))
    found: list[int] = []
    # The mean grows with the scale, until every length is cut.
    for _ in range(60):
        scale = (low + high) / 2
        found = [max(1, min(most, round(scale * value))) for value in shape]
        low, high = (scale, high) if sum(found) < mean * count else (low, scale)
    random.Random(seed).shuffle(found)
    return found


def heavy_tail(
    spread: float = OUTPUT_SPREAD,
    count: int = REQUESTS,
    output_mean: int = OUTPUT_MEAN,
    seed: int = SEED,
) -> tuple[TraceRow, ...]:
    """Requests that all wait at the start; `spread` is the standard deviation of the logarithm of
    the answers' lengths."""
    prompts = log_normal_lengths(count, PROMPT_MEAN, PROMPT_SPREAD, 8 * PROMPT_MEAN, seed + 1)
    answers = log_normal_lengths(count, output_mean, spread, OUTPUT_MOST, seed)
    return tuple(
        TraceRow(0.0, prompt, answer, (number,))
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    )


if __name__ == "__main__":
    write_mooncake(heavy_tail(), COMMITTED)
