"""When requests arrive: gaps between arrivals, in units of the mean gap.

Drawn once, a sequence serves every rate. Knows nothing about what the requests are.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Arrivals = Callable[[int, random.Random], list[float]]
"""(number of requests, source of randomness) -> gaps in mean gaps; the first request
arrives at once."""


def poisson_arrivals(count: int, draw: random.Random) -> list[float]:
    """Independent arrivals: exponential gaps."""
    return gamma_arrivals(1.0)(count, draw)


def gamma_arrivals(burstiness: float) -> Arrivals:
    """Gamma-distributed gaps whose shape is `burstiness`, as vLLM's benchmarks define it.

    1 is Poisson; below 1 requests arrive in bursts; above 1 they arrive more evenly. The
    coefficient of variation of the gaps is `burstiness ** -0.5`. Raises ValueError at or below 0.
    """
    if burstiness <= 0:
        raise ValueError(f"gamma_arrivals(burstiness={burstiness}): expected a positive number")

    def gaps(count: int, draw: random.Random) -> list[float]:
        if burstiness == 1.0:  # The same distribution, with the draws of earlier workloads.
            return [0.0] + [draw.expovariate(1.0) for _ in range(count - 1)]
        return [0.0] + [draw.gammavariate(burstiness, 1 / burstiness) for _ in range(count - 1)]

    return gaps


def on_off_arrivals(on_gaps: float, off_gaps: float) -> Arrivals:
    """Alternates between Poisson arrivals (on) and none (off), with the given mean rate.

    `on_gaps` and `off_gaps` are the lengths of the two, in mean gaps. Raises ValueError for a
    length that is not positive.
    """
    if on_gaps <= 0 or off_gaps < 0:
        raise ValueError(
            f"on_off_arrivals(on_gaps={on_gaps}, off_gaps={off_gaps}): expected a time that is on "
            "and a time, or none, that is off"
        )
    period = on_gaps + off_gaps

    def gaps(count: int, draw: random.Random) -> list[float]:
        on_time, times = 0.0, []
        for number in range(count):
            # While it is on, the rate is higher, to make up for the off time.
            on_time += draw.expovariate(period / on_gaps) if number else 0.0
            times.append(on_time + off_gaps * (on_time // on_gaps))
        return [after - before for before, after in zip([0.0, *times], times, strict=False)]

    return gaps
