"""Load a page or compute its tokens again? Whichever was measured to be faster.

Both rates are running means of this run's measurements, so that the choice fits the machine, the
model and the number format, and follows their changes.
"""

from __future__ import annotations

from typing import Literal

Resume = Literal["auto", "load", "recompute"]
_WEIGHT = 0.2
"""Weight of the newest measurement in the running mean."""


class ResumeCosts:
    """Seconds per page loaded, by tier, and per token computed."""

    def __init__(self, mode: Resume = "auto") -> None:
        self.mode = mode
        self._load_s: dict[str, float] = {}
        self._token_s: float | None = None

    def loaded(self, tier: str, num_blocks: int, seconds: float) -> None:
        """Record that pages were loaded from a tier ("host" or "disk")."""
        each = seconds / num_blocks
        self._load_s[tier] = _mean(self._load_s.get(tier), each)

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Record that a step computed prompt tokens."""
        self._token_s = _mean(self._token_s, seconds / num_tokens)

    def load_s(self, tiers: list[str]) -> float | None:
        """Expected seconds to load one page from each of these tiers; None before
        one was measured."""
        if any(tier not in self._load_s for tier in tiers):
            return None
        return sum(self._load_s[tier] for tier in tiers)

    def compute_s(self, num_tokens: int) -> float | None:
        """Expected seconds to compute tokens; None before any was measured."""
        return None if self._token_s is None else self._token_s * num_tokens

    def should_load(self, tiers: list[str], num_tokens: int) -> bool:
        """True if pages in these tiers should be loaded instead of computing their tokens. True
        also for a tier that was never measured, so that it is tried."""
        if self.mode != "auto":
            return self.mode == "load"
        load_s, compute_s = self.load_s(tiers), self.compute_s(num_tokens)
        return load_s is None or compute_s is None or load_s <= compute_s


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1.0 - _WEIGHT) * old + _WEIGHT * new
