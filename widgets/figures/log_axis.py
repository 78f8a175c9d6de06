"""Logarithmic axes whose labels are plain decimals: 0.1, 0.2, 0.5, 1, 2, 5, 10.

plotly's own labels leave the powers out between decades ("2", "5") or write them as exponents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Digits of the labels in a decade, the most first."""
_FINE = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_MOST, _FEWEST = 8, 3


def log_ticks(low: float, high: float, most: int = _MOST) -> tuple[list[float], list[str]]:
    """(tickvals, ticktext) of a logarithmic axis from `low` to `high`, ends included.

    At most `most` labels: 1, 2 and 5 of each decade where they fit, and at least two labels on any
    axis. Raises ValueError where the ends are not above 0 and in order.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"log_ticks({low}, {high}): expected two numbers above 0, the smaller first"
        )
    if most < 2:
        raise ValueError(f"log_ticks(most={most}): expected at least 2")
    found = _round_values(low, high, most)
    return found, [decimal(value) for value in found]


def _round_values(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = _within(low, high, _FINE, range(first, last + 1))
    plain = [_within(low, high, steps, range(first, last + 1)) for steps in _STEPS]
    for some in plain:
        if _FEWEST <= len(some) <= most:
            return some
    if len(plain[0]) < _FEWEST:
        return found if _FEWEST <= len(found) <= most else even_ticks(low, high)
    # More decades than labels: every second one, every third, ...
    every = next(n for n in range(2, last - first + 2) if (last - first) // n < most)
    return _within(low, high, (1.0,), range(first, last + 1, every))


def _within(low: float, high: float, steps: Iterable[float], decades: range) -> list[float]:
    # From text, so that 0.2 is the 0.2 a reader would write.
    every = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [value for value in every if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def even_ticks(low: float, high: float) -> list[float]:
    """Two to six round values at equal distances, from `low` up to `high`."""
    if high <= low * (1 + 1e-9):
        return [low]
    # A step of at most half the axis: two labels fit wherever it begins.
    scale = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = max(scale * n for n in (1, 2, 5) if scale * n <= (high - low) / 2)
    begin = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(begin, math.floor(high / step + 1e-9) + 1)]


def decimal(value: float) -> str:
    """A number above 0 without exponent: 0.005, 20, 1,000,000."""
    places = max(0, 11 - math.floor(math.log10(value)))
    text = f"{float(f'{value:.12g}'):,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def log_axis(values: Iterable[float], *, pad: float = 0.06, unit: float = 1.0) -> dict[str, Any]:
    """Keywords of `update_xaxes` or `update_yaxes` for a logarithmic axis that holds `values`.

    `pad` is the room at both ends, as a share of the axis; labels count in `unit`s (1e9 for
    GFLOP/s over data in FLOP/s). Values that are not above 0 have no
    place on it and are left out; {} where none is left.
    """
    some = [value for value in values if 0 < value < math.inf]
    if not some:
        return {}
    low, high = min(some), max(some)
    room = pad * math.log10(high / low) if high > low else math.log10(2.0)
    low, high = low / 10**room, high * 10**room
    tickvals, ticktext = log_ticks(low / unit, high / unit)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickmode": "array",
        "tickvals": [value * unit for value in tickvals],
        "ticktext": ticktext,
    }
