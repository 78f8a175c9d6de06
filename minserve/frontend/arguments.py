"""Checks the arguments of `LLM` and `AsyncLLM` other than prompts, and the caller's process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from minserve.config import ConfigError
from minserve.inputs.checks import MOST_ITEMS, checked, number, optional, shorten
from minserve.inputs.params import plain
from minserve.inputs.prompts import check_priority
from minserve.inputs.reading import as_list
from minserve.request import InvalidRequestError, SamplingParams

Errors = Literal["raise", "return"]
"""What a call does if a request is refused or fails: raise the error, or return an Output
that contains it."""


def check_params(params: object) -> SamplingParams | None:
    """SamplingParams, or None for the model's defaults. Raises InvalidRequestError."""
    if params is None:
        return None
    if issubclass(type(params), SamplingParams):
        return plain(params)
    raise InvalidRequestError(
        f"params={shorten(params)}: expected SamplingParams(...), or None for the model's defaults"
    )


def choose_params(params: Any, sampling_params: Any) -> Any:
    """The value of an argument that has two names. Raises InvalidRequestError if both are given."""
    if params is not None and sampling_params is not None:
        raise InvalidRequestError("params and sampling_params are one thing: give one")
    return params if sampling_params is None else sampling_params


def check_errors(errors: object) -> None:
    """Raise InvalidRequestError for a value that is not one of `Errors`."""
    if type(errors) is not str or errors not in ("raise", "return"):
        raise InvalidRequestError(f"errors={shorten(errors)}: expected 'raise' or 'return'")


def params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None,
    count: int,
    default: Callable[[], SamplingParams],
) -> Sequence[SamplingParams]:
    """The SamplingParams of each of `count` prompts; `default` if none are given. Raises
    InvalidRequestError."""
    if params is None or issubclass(type(params), SamplingParams):
        return [check_params(params) or default()] * count
    each = as_list(params, "params", "SamplingParams, or a list of them", MOST_ITEMS)
    chosen = [check_params(one) or default() for one in each]
    if len(chosen) != count:
        raise InvalidRequestError(
            f"{len(chosen)} SamplingParams for {count} prompts: give one, or one each"
        )
    return chosen


def priority_of_each(priority: int | Sequence[int], count: int) -> list[int]:
    """The priority of each of `count` prompts. Raises InvalidRequestError."""
    if not isinstance(priority, list | tuple):
        return [check_priority(priority)] * count
    ranks = [check_priority(rank) for rank in as_list(priority, "priority", "numbers", MOST_ITEMS)]
    if len(ranks) != count:
        raise InvalidRequestError(
            f"{len(ranks)} priorities for {count} prompts: give one, or one each"
        )
    return ranks


def check_seconds(name: str, value: object, least: float = 0.0) -> float | None:
    """A time to wait, in seconds; None: no limit. Raises ConfigError."""
    seconds: float | None = checked(name, value, optional(number(least, 1e9)), ConfigError)
    return seconds


def check_process(made_in: int, what: str) -> None:
    """Raise RuntimeError in a process other than `made_in`, the one that made the engine.

    `fork` copies memory, but not the threads that torch and the engine need.
    """
    if os.getpid() != made_in:
        raise RuntimeError(
            f"this {what} was made by process {made_in}, from which this one was forked, and its "
            "threads stayed there: make the model after forking, or start processes with 'spawn'"
        )
