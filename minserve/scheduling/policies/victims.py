"""Which request is preempted when pages run out: one function per policy.

Candidates come in queue order, and none of them ranks before the request that needs pages. So the
first request never loses its pages, and every run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minserve.request import Request

Victim = Callable[[Sequence[Request]], Request]
"""Candidates in queue order, at least one -> the request to preempt."""


def last_in_line(candidates: Sequence[Request]) -> Request:
    """The last in order; with first come, first served, the one admitted last."""
    return candidates[-1]


def least_computed(candidates: Sequence[Request]) -> Request:
    """The request with the fewest computed tokens, so that the fewest are recomputed."""
    return min(reversed(candidates), key=lambda request: request.num_computed_tokens)


VICTIMS: dict[str, Victim] = {"last": last_in_line, "least_computed": least_computed}
"""`scheduling.victim` -> its function."""
