"""Checks the values that an order, a policy or a predictor returns, before the scheduler uses them.

These objects can be written by the caller. A rank that is not a number would break the sorted queue
for all requests, so it is refused before it is stored. Knows nothing about requests' tokens.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

from minserve.request import Request


class HookError(RuntimeError):
    """An order, policy or predictor returned a value that cannot be used. The message names its
    class, the value and what was expected."""


def checked_rank(order: object, request: Request, rank: object) -> float:
    """`QueuePolicy.rank` as a number that compares with every other number. Raises HookError."""
    if not isinstance(rank, Real) or rank != rank:
        raise _refusal(order, "rank", request, rank, "a number, and not NaN")
    return float(rank) if not isinstance(rank, Integral) else int(rank)


def checked_length(predictor: object, request: Request, length: object) -> float:
    """`LengthPredictor.predict` in output tokens, 0 or more. Raises HookError."""
    if not isinstance(length, Real) or not math.isfinite(length) or length < 0:
        raise _refusal(predictor, "predict", request, length, "a finite number, 0 or more")
    return float(length)


def checked_flag(policy: object, method: str, answer: object) -> bool:
    """A policy's yes or no. Raises HookError."""
    if isinstance(answer, bool) or type(answer).__name__ == "bool":  # numpy's, too
        return bool(answer)
    raise _refusal(policy, method, None, answer, "True or False")


def checked_count(policy: object, method: str, count: object) -> int:
    """A policy's number of tokens or places, 0 or more. Raises HookError."""
    if type(count) is int and count >= 0:
        return count  # fast path: runs at every step
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
        raise _refusal(policy, method, None, count, "a whole number, 0 or more")
    return int(count)


def _refusal(
    hook: object, method: str, request: Request | None, value: object, expected: str
) -> HookError:
    about = f" for request {request.request_id}" if request is not None else ""
    shown = repr(value)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    return HookError(
        f"{type(hook).__name__}.{method} answered {shown} ({type(value).__name__}){about}: "
        f"expected {expected}"
    )
