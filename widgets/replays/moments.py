"""The moments of a replay: when something changed in any of the runs, in seconds from its start.

A moment is the end of a step, on a time axis that all runs share. Knows nothing about drawing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from widgets.figures.sides import Side


@dataclass(frozen=True)
class Moment:
    """One position of the cursor."""

    index: int
    at_s: float
    """Seconds since the runs began."""
    done: Mapping[str, int]
    """Side -> index of the last kept step that had ended; -1 before the first one."""


class Moments:
    """All moments of the runs, the beginning first."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self._ends = {
            side.name: [step.end_s - side.origin_s for step in side.run.steps] for side in sides
        }
        times = sorted({0.0}.union(*self._ends.values()))
        self._times = times

    def __len__(self) -> int:
        return len(self._times)

    @property
    def last_s(self) -> float:
        """The end of the longest run."""
        return self._times[-1]

    def __getitem__(self, index: int) -> Moment:
        at = self._times[index]
        done = {name: bisect_right(ends, at) - 1 for name, ends in self._ends.items()}
        return Moment(range(len(self))[index], at, done)

    def at(self, seconds: float) -> Moment:
        """The newest moment that is not after `seconds`; the beginning for a negative time."""
        return self[max(0, bisect_right(self._times, seconds) - 1)]

    def of_step(self, side: str, step: int) -> Moment:
        """The moment when a side's kept step ended."""
        return self.at(self._ends[side][step])


def speed_words(speed: float) -> str:
    """ "real time", "1/10 of real time", "4 times real time"."""
    if speed == 1:
        return "real time"
    if speed > 1:
        return f"{speed:g} times real time"
    ratio = Fraction(speed).limit_denominator(1000)
    return f"{ratio.numerator}/{ratio.denominator} of real time"
