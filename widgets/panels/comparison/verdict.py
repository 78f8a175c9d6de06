"""Faster, slower, no difference, or no verdict: the rule, computed from rounds of both sides.

A round is both sides, run one after the other, so that what the machine did meanwhile hit both.
Knows nothing about engines or widgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minserve.bench.interleave import Spread
from widgets.metrics import Better

Outcome = Literal["better", "worse", "same", "unclear"]
"""same: no difference detectable. unclear: no verdict, because rounds are few or disagree."""

LEAST_ROUNDS = 3
MARGINS: Mapping[int, float] = {5: 1.03, LEAST_ROUNDS: 1.10}
"""Rounds -> factor by which the weakest must differ. Few rounds agree by chance more easily, so
they must differ by more."""
SAME_MEDIAN, SAME_WIDTH = 1.10, 1.25
"""Without a verdict the sides count as the same where the median is this close to 1, and the
largest ratio is at most this many times the smallest."""

RULE = (
    "A verdict needs all rounds to point the same way, and the weakest to differ by at least 3 % "
    "(10 % with three or four rounds). Otherwise there is no difference detectable where the "
    "median is within 10 % of equal and the rounds within 25 % of each other, and no verdict "
    "where they are not."
)


@dataclass(frozen=True)
class Verdict:
    """What the rounds say about one quantity."""

    outcome: Outcome
    ratio: Spread
    """Side B over side A, round by round: smallest, median, largest."""
    better: Better
    exact: bool = False
    """True for counts and virtual times, where any difference is a difference."""

    @property
    def decided(self) -> bool:
        """False where there is no verdict: the machine was busy, or rounds were few."""
        return self.outcome != "unclear"

    @property
    def gain(self) -> float:
        """How many times better B is in the median: above 1 is better, whichever way that lies."""
        return self.ratio.median if self.better == "higher" else 1 / self.ratio.median

    @property
    def direction(self) -> Literal["up", "down", "same"]:
        """Where the quantity itself went on side B."""
        if self.outcome not in ("better", "worse"):
            return "same"
        return "up" if (self.outcome == "better") == (self.better == "higher") else "down"

    def contains(self, factor: float, tolerance: float = 1.0) -> bool:
        """Whether a factor lies inside the measured spread, widened by a factor `tolerance`."""
        return self.ratio.min / tolerance <= factor <= self.ratio.max * tolerance


def judge(
    baseline: Sequence[float], other: Sequence[float], better: Better, *, exact: bool = False
) -> Verdict:
    """The verdict over rounds of positive numbers, one per round and side.

    With `exact` any difference counts, in any number of rounds. Raises ValueError for no rounds,
    sides of unequal length, or numbers that are not positive (unless both of a round are 0).
    """
    ratio = Spread.of([_ratio(a, b) for a, b in zip(baseline, other, strict=True)])
    margin = _margin(len(ratio.values), exact)
    outcome: Outcome = "unclear"
    if margin is None:
        pass
    elif ratio.min >= margin and ratio.min > 1:
        outcome = "better" if better == "higher" else "worse"
    elif ratio.max <= 1 / margin and ratio.max < 1:
        outcome = "worse" if better == "higher" else "better"
    elif _alike(ratio):
        outcome = "same"
    return Verdict(outcome, ratio, better, exact)


def _alike(ratio: Spread) -> bool:
    near = 1 / SAME_MEDIAN <= ratio.median <= SAME_MEDIAN
    return near and ratio.max <= SAME_WIDTH * ratio.min


def _ratio(a: float, b: float) -> float:
    if a == b == 0:
        return 1.0
    if a <= 0 or b <= 0:
        raise ValueError(f"a ratio needs positive numbers, got {b} over {a}")
    return b / a


def _margin(rounds: int, exact: bool) -> float | None:
    if exact:
        return 1.0
    for least, margin in MARGINS.items():
        if rounds >= least:
            return margin
    return None
