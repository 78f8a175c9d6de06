"""Times candidates against each other: interleaved rounds, the best candidate, and its spread.

Knows nothing about what the candidates do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from minserve.clock import Clock, WallClock


@dataclass(frozen=True, slots=True)
class Rate:
    """Work per second of the best operator found, over rounds of a few milliseconds."""

    per_s: float
    """Rate of the fastest round: the ceiling. Other programs only ever make rounds slower."""
    median: float
    low: float
    """Rate of the slowest round."""
    operator: str
    rounds: int


def best_rate(
    candidates: Mapping[str, Callable[[], object]],
    work: float,
    device: torch.device,
    budget_s: float,
    clock: Clock | None = None,
) -> Rate:
    """Time the candidates, which each do `work` (FLOPs or bytes) per call, for `budget_s`.

    Rounds are interleaved, so that a disturbance affects all candidates equally. Raises ValueError
    without candidates.
    """
    if not candidates:
        raise ValueError("best_rate needs at least one candidate")
    clock = clock or WallClock()
    share = budget_s / len(candidates)
    repeats: dict[str, int] = {}
    for name, call in candidates.items():
        # The first call includes allocation and code generation.
        _time(call, 1, device, clock)
        once = _time(call, 1, device, clock)
        # Long enough that reading the clock and synchronizing the device do not matter, and short
        # enough to have several rounds.
        repeats[name] = max(1, int(min(2e-3, share / 5) / max(once, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    end = clock.now() + budget_s
    while len(next(iter(seconds.values()))) < 3 or clock.now() < end:
        for name, call in candidates.items():
            seconds[name].append(_time(call, repeats[name], device, clock) / repeats[name])
    name = min(seconds, key=lambda each: min(seconds[each]))
    times = seconds[name]
    return Rate(
        per_s=work / min(times),
        median=work / median(times),
        low=work / max(times),
        operator=name,
        rounds=len(times),
    )


def _time(call: Callable[[], object], repeats: int, device: torch.device, clock: Clock) -> float:
    synchronize(device)
    start = clock.now()
    for _ in range(repeats):
        call()
    synchronize(device)
    return max(clock.now() - start, 1e-9)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queue; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
