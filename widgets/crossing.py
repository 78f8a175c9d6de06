"""Where a ratio measured at a few places passes 1, between two of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any


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
    last = ordered[-1] if ordered else None
    return float(last) if last is not None and points[last] == 1 else None
