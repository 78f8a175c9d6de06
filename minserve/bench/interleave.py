"""Compares A with B in one run: warm-ups, then rounds in which every side runs once.

A machine's speed drifts (clocks, other programs, caches), so sides are compared within a round
and the ratio is reported with its spread. The order is reversed every round, so that no side
always runs first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity."""

    min: float
    median: float
    max: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of these values. Raises ValueError if there are none."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(min(values), median(values), max(values), tuple(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.min:.4g} to {self.max:.4g})"


def interleave(
    sides: Mapping[str, Callable[[], _Result]],
    repeats: int,
    *,
    warmup: Mapping[str, Callable[[], object]] | None = None,
    progress: bool = True,
) -> dict[str, list[_Result]]:
    """Run every warm-up once, then `repeats` rounds of all sides; returns results by side, in
    order.

    Raises ValueError for less than one round.
    """
    if repeats < 1:
        raise ValueError(f"interleave(repeats={repeats}): expected at least 1 round")
    warmup = warmup or {}
    results: dict[str, list[_Result]] = {name: [] for name in sides}
    total = len(warmup) + repeats * len(sides)
    with tqdm(total=total, disable=not progress, leave=False, delay=2, unit="run") as bar:
        for name, warm in warmup.items():
            # Without a refresh, so that a short run shows no bar at all.
            bar.set_description(f"warm-up: {name}", refresh=False)
            warm()
            bar.update()
        for number in range(repeats):
            order = list(sides)
            for name in reversed(order) if number % 2 else order:
                text = f"round {number + 1} of {repeats}: {name}"
                bar.set_description(text, refresh=False)
                results[name].append(sides[name]())
                bar.update()
    return results


def pairwise_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Ratio within each round. Raises ValueError for sides of unequal length."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
