"""Lengths of prompts and answers: distributions with a given mean, drawn one by one.

Every draw is at least 1 token and at most `at_most`, which lowers the mean if it cuts a tail.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Lengths = Callable[[random.Random], int]
"""A source of randomness -> tokens, at least 1."""

NO_LIMIT = 1 << 30


def _within(tokens: float, at_most: int) -> int:
    return max(1, min(at_most, round(tokens)))


def _check(name: str, mean: float) -> None:
    if mean < 1:
        raise ValueError(f"{name}(mean={mean}): expected a mean of at least 1 token")


def fixed(tokens: int) -> Lengths:
    """Always the same length."""
    _check("fixed", tokens)
    return lambda draw: tokens


def uniform(low: int, high: int) -> Lengths:
    """Every whole number from `low` to `high`, both included."""
    if not 1 <= low <= high:
        raise ValueError(f"uniform(low={low}, high={high}): expected 1 <= low <= high")
    return lambda draw: draw.randint(low, high)


def exponential(mean: float, at_most: int = NO_LIMIT) -> Lengths:
    """Memoryless: the expected remaining length of a request does not depend on how
    long it has run."""
    _check("exponential", mean)
    return lambda draw: _within(draw.expovariate(1 / mean), at_most)


def lognormal(mean: float, sigma: float = 1.0, at_most: int = NO_LIMIT) -> Lengths:
    """A typical length and a tail; `sigma` is the standard deviation of the logarithm."""
    _check("lognormal", mean)
    centre = math.log(mean) - sigma * sigma / 2
    return lambda draw: _within(draw.lognormvariate(centre, sigma), at_most)


def pareto(mean: float, alpha: float = 1.5, at_most: int = NO_LIMIT) -> Lengths:
    """Heavy-tailed: most are short, and a few long ones are a large part of the work. `alpha` must
    be above 1; the nearer to 1, the heavier the tail."""
    _check("pareto", mean)
    if alpha <= 1:
        raise ValueError(f"pareto(alpha={alpha}): expected more than 1, or there is no mean")
    least = mean * (alpha - 1) / alpha
    return lambda draw: _within(least * draw.paretovariate(alpha), at_most)
