"""Fewer points for the same picture: what to keep when there are more than a figure can carry.

The smallest and the largest are always kept, and `note` says how many were left out: the extremes
are what a figure of waiting or of memory is looked at for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Key = Callable[[Item], float]


def thinned(items: Sequence[Item], limit: int, key: Key[Item], *also: Key[Item]) -> list[Item]:
    """At most `limit` items in order: of each stretch the largest by `key`, both ends, and the
    smallest and the largest by every key. For lines and areas, whose peaks must survive."""
    if len(items) <= limit:
        return list(items)
    ends = _ends(items, limit, (key, *also))
    # A stretch may hold an end: it is kept once, and the figure has a point less.
    stretches = limit - len(ends)
    inner = range(len(items))
    peaks = {
        max(
            inner[n * len(items) // stretches : (n + 1) * len(items) // stretches],
            key=lambda place: key(items[place]),
        )
        for n in range(stretches)
    }
    return [items[place] for place in sorted(ends | peaks)]


def sampled(items: Sequence[Item], limit: int, *keys: Key[Item]) -> list[Item]:
    """At most `limit` items in order: evenly spread, with both ends, and the smallest and the
    largest by every key. For clouds and rows, where every item is one of its kind."""
    if len(items) <= limit:
        return list(items)
    ends = _ends(items, limit, keys)
    rest = [place for place in range(len(items)) if place not in ends]
    body = limit - len(ends)
    spread = {rest[(2 * n + 1) * len(rest) // (2 * body)] for n in range(body)}
    return [items[place] for place in sorted(ends | spread)]


def _ends(items: Sequence[Item], limit: int, keys: Sequence[Key[Item]]) -> set[int]:
    found = {0, len(items) - 1}
    for key in keys:
        values = [key(item) for item in items]
        found |= {values.index(min(values)), values.index(max(values))}
    fewest = 2 * len(keys) + 3
    if limit < fewest:
        raise ValueError(f"sampling {limit} of {len(items):,} items: expected at least {fewest}")
    return found


def note(drawn: int, total: int, noun: str, name: str = "") -> str:
    """What is under a figure that leaves items out; "" where all are drawn."""
    if drawn >= total:
        return ""
    of = f"{name}: " if name else ""
    return f"{of}{drawn:,} of {total:,} {noun} drawn; the largest and smallest are kept."


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
