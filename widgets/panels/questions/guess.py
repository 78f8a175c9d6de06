"""A prediction about one quantity, and its score against the verdict. Knows nothing about widgets.

What was left untouched is never scored, nor is anything while a busy machine gives no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from widgets.panels.comparison.verdict import Verdict
from widgets.scoring.questions import Question

TOLERANCE = 1.25
"""A factor within the measured spread, or this close to it, is right."""

DIRECTIONS: Mapping[str, str] = {"goes down": "down", "stays the same": "same", "goes up": "up"}
PARTS = ("direction", "factor", "reason")


@dataclass(frozen=True)
class Guess:
    """What the reader chose; None for what was left untouched."""

    direction: str | None
    factor: float | None
    """At least 1; the direction says whether up or down."""
    reason: int | None

    @property
    def ratio(self) -> float | None:
        """The predicted quantity, side B over side A."""
        if self.direction == "same":
            return 1.0
        if self.direction is None or self.factor is None:
            return None
        return self.factor if self.direction == "up" else 1 / self.factor

    @property
    def touched(self) -> bool:
        """True when anything was chosen."""
        return self.direction is not None or self.factor is not None or self.reason is not None


@dataclass(frozen=True)
class Score:
    """Part -> right, wrong, or None where nothing was predicted."""

    direction: bool | None
    factor: bool | None
    reason: bool | None

    @property
    def points(self) -> int:
        """Parts that were right."""
        return sum(getattr(self, part) is True for part in PARTS)


def direction_of(verdict: Verdict) -> Literal["up", "down", "same"] | None:
    """Where the quantity went on side B; None where the runs give no verdict.

    An exact quantity that is neither better nor worse has stayed the same.
    """
    if verdict.outcome in ("better", "worse"):
        return "up" if (verdict.outcome == "better") == (verdict.better == "higher") else "down"
    return "same" if verdict.exact or str(verdict.outcome) == "same" else None


def score(question: Question, guess: Guess, verdict: Verdict) -> Score | None:
    """Compare a guess with what was measured; inside the measured spread counts as right.

    None where the runs give no verdict: then nothing is scored.
    """
    went = direction_of(verdict)
    if went is None:
        return None
    ratio = guess.ratio
    inside = ratio is not None and verdict.contains(ratio)
    direction = None if guess.direction is None else guess.direction == went or inside
    return Score(
        direction=direction,
        # A small effect is close to none, and to its opposite: no factor of the wrong direction.
        factor=None if ratio is None else bool(direction) and verdict.contains(ratio, TOLERANCE),
        reason=None if guess.reason is None else question.reasons[guess.reason].correct,
    )


def direction_words(direction: str) -> str:
    """A direction as the reader chose it: "goes up" for up."""
    return next(words for words, value in DIRECTIONS.items() if value == direction)
