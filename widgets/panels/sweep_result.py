"""What a sweep found: a metric, or the ratio of two sides, at every value of a knob."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minserve.bench.interleave import Spread
from minserve.trace import TraceHeader
from widgets.panels.metrics import Metric


@dataclass(frozen=True)
class SweepResult:
    """A metric at every value of a knob, or the ratio of two sides there."""

    knob: str
    unit: str
    metric: Metric
    sides: tuple[str, ...]
    """Two names where the points are ratios, second over first; otherwise one."""
    points: Mapping[Any, Spread]
    modelled: Mapping[Any, float]
    headers: Mapping[str, TraceHeader]
    exact: bool
    """True on the virtual clock, and for counts."""

    @property
    def is_ratio(self) -> bool:
        """True where two sides were compared."""
        return len(self.sides) == 2

    @property
    def crossover(self) -> float | None:
        """The knob's value where the ratio is 1, between measured values; None where it is not."""
        return crossing({value: spread.median for value, spread in self.points.items()})

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine: counts, and what the model says."""
        found: dict[str, Any] = {}
        if self.exact:
            found |= {
                f"{self.metric.label} at {self.knob} = {value}": round(spread.median, 6)
                for value, spread in self.points.items()
            }
        return found | {
            f"modelled {self.metric.label} at {self.knob} = {value}": round(number, 6)
            for value, number in self.modelled.items()
        }


def crossing(points: Mapping[Any, float]) -> float | None:
    """Where positive values over numeric places pass 1, on a line through their logarithms."""
    places = [place for place in points if isinstance(place, (int, float))]
    if len(places) < len(points):
        return None
    ordered = sorted(places)
    for low, high in itertools.pairwise(ordered):
        a, b = math.log(points[low]), math.log(points[high])
        if a == 0:
            return float(low)
        if a * b < 0:
            share = a / (a - b)
            if low > 0:
                return float(low * (high / low) ** share)
            return float(low + share * (high - low))
    return None
