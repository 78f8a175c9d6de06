"""Which request loses its pages when they run out: one function per answer.

Candidates come in order of the queue, and none of them ranks before the request that needs pages:
so the first in line never loses its pages, and every run comes to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minserve.request import Request

Victim = Callable[[Sequence[Request]], Request]
"""At least one candidate, in order of the queue -> the one that goes."""


def last_in_line(candidates: Sequence[Request]) -> Request:
    """The last in order; with first come first served, the one admitted last."""
    return candidates[-1]


def least_computed(candidates: Sequence[Request]) -> Request:
    """The one with the fewest computed tokens, so that the least is done twice."""
    return min(reversed(candidates), key=lambda request: request.num_computed_tokens)


VICTIMS: dict[str, Victim] = {"last": last_in_line, "least_computed": least_computed}
"""`scheduling.victim` -> its function."""
