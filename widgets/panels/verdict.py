"""Faster, slower, or no difference detectable: the rule, computed from pairs of runs.

A pair is both sides of one round, run one after the other, so that what the machine did meanwhile
hit both. Knows nothing about engines or widgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minserve.bench.interleave import Spread

Better = Literal["higher", "lower"]
Outcome = Literal["better", "worse", "none"]

MARGINS: Mapping[int, float] = {5: 1.03, 3: 1.10}
"""Pairs -> factor by which the weakest pair must differ. Few pairs agree by chance more easily, so
they must differ by more; below three pairs no verdict is given."""

RULE = (
    "All pairs must point the same way, and the weakest must differ by at least 3 % (10 % with "
    "three or four pairs). Fewer than three pairs give no verdict."
)


@dataclass(frozen=True)
class Verdict:
    """What the pairs of runs say about one quantity."""

    outcome: Outcome
    ratio: Spread
    """Side B over side A, pair by pair: smallest, median, largest."""
    better: Better
    exact: bool = False
    """True for counts and virtual times, where any difference is a difference."""

    @property
    def gain(self) -> float:
        """How many times better B is in the median: above 1 is better, whichever way that lies."""
        return self.ratio.median if self.better == "higher" else 1 / self.ratio.median

    @property
    def direction(self) -> Literal["up", "down", "same"]:
        """Where the quantity itself went on side B."""
        if self.outcome == "none":
            return "same"
        return "up" if (self.outcome == "better") == (self.better == "higher") else "down"

    def contains(self, factor: float, tolerance: float = 1.0) -> bool:
        """Whether a factor lies inside the measured spread, widened by a factor `tolerance`."""
        return self.ratio.min / tolerance <= factor <= self.ratio.max * tolerance


def judge(
    baseline: Sequence[float], other: Sequence[float], better: Better, *, exact: bool = False
) -> Verdict:
    """The verdict over pairs of positive numbers, one per round and side.

    With `exact` any difference counts, in any number of pairs. Raises ValueError for no pairs,
    sides of unequal length, or numbers that are not positive (unless both of a pair are 0).
    """
    ratio = Spread.of([_ratio(a, b) for a, b in zip(baseline, other, strict=True)])
    margin = _margin(len(ratio.values), exact)
    if margin is None:
        outcome: Outcome = "none"
    elif ratio.min >= margin and ratio.min > 1:
        outcome = "better" if better == "higher" else "worse"
    elif ratio.max <= 1 / margin and ratio.max < 1:
        outcome = "worse" if better == "higher" else "better"
    else:
        outcome = "none"
    return Verdict(outcome, ratio, better, exact)


def _ratio(a: float, b: float) -> float:
    if a == b == 0:
        return 1.0
    if a <= 0 or b <= 0:
        raise ValueError(f"a ratio needs positive numbers, got {b} over {a}")
    return b / a


def _margin(pairs: int, exact: bool) -> float | None:
    if exact:
        return 1.0
    for least, margin in MARGINS.items():
        if pairs >= least:
            return margin
    return None
