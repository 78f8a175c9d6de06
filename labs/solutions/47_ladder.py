"""The top shape serves a stretch of sizes; below it is the same question with one shape fewer."""

from collections import Counter
from functools import cache


def ladder(rows, most):
    """At most `most` row counts, so that rounding every step up to one of them pads least."""
    counts = Counter(rows)
    sizes = sorted(counts)

    @cache
    def best(upto, left):
        """(padding, shapes) for the `upto` smallest sizes."""
        if upto == 0:
            return 0, ()
        if left == 0:
            return float("inf"), ()  # some step would fit nowhere
        top, padding, found = sizes[upto - 1], 0, []
        for start in reversed(range(upto)):
            padding += counts[sizes[start]] * (top - sizes[start])
            before, shapes = best(start, left - 1)
            found.append((before + padding, (*shapes, top)))
        return min(found)

    return list(best(len(sizes), most)[1])
