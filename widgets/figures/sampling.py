"""Fewer points for the same picture: what to keep when there are more than a figure can carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def thinned(items: Sequence[Item], limit: int, key: Callable[[Item], float]) -> list[Item]:
    """At most `limit` items in order: of each stretch the largest by `key`, and both ends.

    Peaks survive, because they are what a figure of memory or latency is looked at for.
    """
    if len(items) <= limit:
        return list(items)
    if limit < 3:
        raise ValueError(f"thinned(limit={limit}): expected at least 3")
    inner, buckets = len(items) - 2, limit - 2
    kept = [items[0]]
    for bucket in range(buckets):
        first, last = 1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets
        kept.append(max(items[first:last], key=key))
    return [*kept, items[-1]]


def quantiles(ordered: Sequence[float], limit: int) -> list[tuple[float, float]]:
    """(value, share of values at most that) for at most `limit` of ascending values.

    Thinning keeps the tail: the largest tenth of what is kept are the largest values themselves.
    """
    count = len(ordered)
    if count <= limit:
        places = list(range(count))
    else:
        tail = limit // 10
        body = limit - tail
        places = [round(n * (count - tail - 1) / (body - 1)) for n in range(body)]
        places += range(count - tail, count)
    return [(ordered[place], (place + 1) / count) for place in places]
