"""Sends traffic to an engine: requests arrive by the engine's clock, whether it is busy or not.

Works on the wall clock and on a virtual one. Can be stopped between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minserve.bench.workloads.traffic import TimedRequest, Traffic
from minserve.clock import VirtualClock
from minserve.engine import Engine
from minserve.request import QueueFullError, Request
from minserve.trace import StepTrace
from minserve.virtual.engine import VirtualEngine


@dataclass(frozen=True)
class DriveResult:
    """The outcome of the traffic. The engine's trace has the rest."""

    requests: tuple[Request, ...]
    """In order of arrival, without the refused ones and those that had not arrived before a
    stop. Their names are the numbers of their prompts in the traffic."""
    stopped: bool
    duration_s: float
    """From the start to the end of the last step, in seconds of the engine's clock."""
    refused: tuple[int, ...] = ()
    """Numbers of the prompts that came when the queue was full
    (`scheduling.max_queued_requests`); they are lost."""


def drive(
    engine: Engine,
    traffic: Traffic,
    *,
    rate_per_s: Callable[[], float] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[StepTrace], None] = lambda step: None,
    max_wait_s: float = 0.1,
    fast: bool = False,
) -> DriveResult:
    """Run all of `traffic`; `rate_per_s` is called for every gap, so the rate may
    change during the run.

    An idle engine waits for the next arrival, at most `max_wait_s` at a time, so that a stop or a
    new rate takes effect; where only modelled time passes and no rate can change, it is there at
    once. A stop aborts all live requests. `fast` lets an engine on modelled time
    skip steps without a decision: they are in its trace, but `on_step` is not called for them.
    """
    start_s = engine.clock.now()
    rate = rate_per_s or (lambda: traffic.rate_per_s or float("inf"))
    coming = list(reversed(traffic.requests))
    requests: list[Request] = []
    refused: list[int] = []
    number = 0
    last_s = start_s
    if rate_per_s is None and isinstance(engine.clock, VirtualClock):
        max_wait_s = float("inf")
    while coming or engine.has_work:
        if should_stop():
            engine.abort_all()
            break
        now = engine.clock.now()
        while coming:
            due_s = last_s + coming[-1].gap / rate()
            if due_s > now:
                break
            timed = coming.pop()
            last_s = due_s
            try:
                requests += _add(engine, number, timed, due_s)
            except QueueFullError:
                refused.append(number)
            number += 1
        if engine.has_work:
            on_step(engine.step())
            if fast and isinstance(engine, VirtualEngine):
                engine.fast_forward(last_s + coming[-1].gap / rate() if coming else float("inf"))
        elif coming:
            due_s = last_s + coming[-1].gap / rate()
            engine.clock.wait_until(min(due_s, now + max_wait_s))
    return DriveResult(
        requests=tuple(requests),
        stopped=bool(coming) or any(r.finish_reason == "abort" for r in requests),
        duration_s=engine.clock.now() - start_s,
        refused=tuple(refused),
    )


def _add(engine: Engine, number: int, timed: TimedRequest, due_s: float) -> list[Request]:
    return engine.add(
        f"{number}",
        timed.prompt_token_ids,
        timed.params,
        arrival_s=due_s,
        priority=timed.priority,
    )
