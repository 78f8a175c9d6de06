"""Requests that arrive over time: the open-loop side of a benchmark.

Gaps are kept in units of the mean gap, so that one drawn sequence serves every rate and a rate may
change while it is being played. Knows nothing about engines.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from minserve.bench.workloads.arrivals import Arrivals, poisson_arrivals
from minserve.bench.workloads.conversations import Jobs
from minserve.request import SamplingParams


@dataclass(frozen=True)
class TimedRequest:
    """One request, and how long after the one before it arrives."""

    gap: float
    """In mean gaps: at a rate of r requests/s it arrives `gap / r` seconds after the last."""
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    prompt_text: str | None = None
    """For servers that are sent text: the prompt as it was written. Its `prompt_token_ids` are then
    empty, so an engine in this process refuses it."""

    @property
    def prompt(self) -> str | tuple[int, ...]:
        """What a server is sent."""
        return self.prompt_token_ids if self.prompt_text is None else self.prompt_text


@dataclass(frozen=True)
class Traffic:
    """Requests in order of arrival."""

    name: str
    requests: tuple[TimedRequest, ...]
    rate_per_s: float | None
    """Mean requests per second; None: all arrive at the start."""
    seed: int


def fixed_length(
    num_tokens: int, temperature: float = 0.0, seed: int | None = None
) -> SamplingParams:
    """Exactly `num_tokens` of output."""
    return SamplingParams(
        max_tokens=num_tokens,
        min_tokens=num_tokens,
        temperature=temperature,
        seed=seed,
        ignore_eos=True,
    )


def poisson(
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    rate_per_s: float,
    seed: int = 0,
    name: str = "poisson",
) -> Traffic:
    """Independent arrivals: exponential gaps, the first request at the start.

    Raises ValueError for a rate that is not positive, or for params that do not match the prompts.
    """
    if rate_per_s <= 0:
        raise ValueError(f"poisson(rate_per_s={rate_per_s}): expected a positive rate")
    gaps = poisson_arrivals(len(prompts), random.Random(seed))
    return Traffic(name, _zip(gaps, prompts, params), rate_per_s, seed)


def traffic(
    jobs: Jobs,
    count: int,
    rate_per_s: float,
    arrivals: Arrivals = poisson_arrivals,
    seed: int = 0,
    name: str = "drawn",
) -> Traffic:
    """`count` requests of a shape (`conversations`), with the given `arrivals` at a mean rate.

    Output lengths are fixed, greedy. The same seed gives the same prompts and lengths whatever the
    arrivals are, and the same gaps whatever the prompts are. Raises ValueError for a rate or a
    count that is not positive.
    """
    if rate_per_s <= 0 or count < 1:
        raise ValueError(
            f"traffic(count={count}, rate_per_s={rate_per_s}): expected at least 1 request and a "
            "positive rate"
        )
    made = jobs(count, random.Random(f"{seed} jobs"))
    gaps = arrivals(count, random.Random(f"{seed} arrivals"))
    lengths: dict[int, SamplingParams] = {}
    for job in made:
        if job.output_tokens not in lengths:
            lengths[job.output_tokens] = fixed_length(job.output_tokens)
    requests = tuple(
        TimedRequest(gap, job.prompt_token_ids, lengths[job.output_tokens])
        for gap, job in zip(gaps, made, strict=True)
    )
    return Traffic(name, requests, rate_per_s, seed)


def at_once(
    prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], name: str = "all at once"
) -> Traffic:
    """All requests arrive at the start."""
    return Traffic(name, _zip([0.0] * len(prompts), prompts, params), None, 0)


def _zip(
    gaps: Sequence[float], prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> tuple[TimedRequest, ...]:
    if len(prompts) != len(params):
        raise ValueError(f"{len(prompts)} prompts and {len(params)} SamplingParams: give one each")
    return tuple(
        TimedRequest(gap, tuple(prompt), one)
        for gap, prompt, one in zip(gaps, prompts, params, strict=True)
    )
