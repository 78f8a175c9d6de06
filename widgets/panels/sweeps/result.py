"""What a sweep found: a metric, or the ratio of two sides, at every value of a knob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minserve.bench.interleave import Spread
from minserve.trace import TraceHeader
from widgets.crossing import crossing
from widgets.metrics import Metric


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
    label: str = ""
    """The knob as the reader knows it."""
    threshold: float = 1.0
    """The gain that was asked about: at 1 both sides are equal."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.knob)

    @property
    def gains(self) -> dict[Any, float]:
        """Value -> how many times better the second side is there; above 1 it wins."""
        return {value: self.gain(spread.median) for value, spread in self.points.items()}

    def gain(self, ratio: float) -> float:
        """A ratio of the two sides as a gain, whichever way the metric points."""
        return ratio if self.metric.better == "higher" else 1 / ratio

    @property
    def is_ratio(self) -> bool:
        """True where two sides were compared."""
        return len(self.sides) == 2

    @property
    def crossover(self) -> float | None:
        """The knob's value where the gain passes the threshold; None where it does not.

        Of one side alone, where the metric itself passes the threshold.
        """
        found = self.gains if self.is_ratio else {v: s.median for v, s in self.points.items()}
        if any(number <= 0 for number in found.values()):
            return None
        return crossing({value: number / self.threshold for value, number in found.items()})

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine: counts, and what the model says."""
        found: dict[str, Any] = {}
        if self.exact:
            # Counted on this machine; on the virtual clock a time is modelled.
            modelled = any(header.provenance == "modelled" for header in self.headers.values())
            how = "counted" if self.metric.counted or not modelled else "modelled"
            found |= self._words({v: s.median for v, s in self.points.items()}, how)
        return found | self._words(self.modelled, "modelled")

    def words(self, number: float) -> str:
        """A point in words: the metric's value, or both sides compared."""
        return self.metric.compare(number) if self.is_ratio else self.metric.show(number)

    def _words(self, numbers: Mapping[Any, float], how: str) -> dict[str, str]:
        who = f"“{self.sides[1]}”, " if self.is_ratio else ""
        return {
            f"{who}{self.metric.label} ({how}) at {self.label} = {value}": self.words(number)
            for value, number in numbers.items()
        }
