"""Who ends when something fails, and whether an engine's books still add up.

An error ends the request it belongs to; where that cannot be told, its batch; where not even that
can, everything. Afterwards the books are audited: what an error or Ctrl-C left half-done must not
be found by the next request. Knows how to tell, not how to end a request: that is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from minserve.memory import IntegrityError, KVManager
from minserve.prepare import Builder, BuiltBatch
from minserve.request import Request
from minserve.scheduling import Scheduler, StepPlan


class EngineError(RuntimeError):
    """The engine failed while it worked on a request; the cause is chained."""


class Flight(Protocol):
    """A step between submit and collect, as far as the books are concerned."""

    @property
    def plan(self) -> StepPlan:
        """Who computes how many tokens."""
        ...

    @property
    def built(self) -> BuiltBatch:
        """Whose tokens are drawn."""
        ...


def is_interrupt(error: BaseException | None) -> bool:
    """True for what comes from outside and says nothing about a request: Ctrl-C, an exit. None
    stands for one that struck while another was being dealt with."""
    return error is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def describe(error: BaseException | None) -> str:
    """What `Request.error` says of it, in one line."""
    if error is None:
        return "interrupted: the engine was stopped in the middle of a step"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def failing_rows(builder: Builder, plan: StepPlan) -> list[Request]:
    """The requests of a plan whose rows cannot be built even alone; building changes nothing."""
    failing = []
    for request, count in zip(plan.requests, plan.num_tokens, strict=True):
        try:
            builder.build(StepPlan([request], [count]))
        except BaseException as error:
            if is_interrupt(error):
                raise
            failing.append(request)
    return failing


def audit(
    scheduler: Scheduler,
    memory: KVManager,
    live: Iterable[Sequence[Request]],
    flights: Sequence[Flight],
    keeps_cache: bool,
) -> None:
    """Verify that engine, scheduler and memory speak of the same requests and pages.

    Raises IntegrityError with the first thing that does not add up.
    """
    scheduler.check()
    memory.check()
    requests = {request for group in live for request in group}
    queued = set(scheduler.requests())
    if requests != queued:
        raise IntegrityError(f"{len(requests)} requests are live and {len(queued)} are queued")
    if not memory.requests() <= requests:
        raise IntegrityError("a request that has ended still holds pages")
    for request in requests:
        _check_request(request, memory, flights, keeps_cache)


def _check_request(
    request: Request, memory: KVManager, flights: Sequence[Flight], keeps_cache: bool
) -> None:
    in_flight = sum(
        count
        for flight in flights
        for one, count in zip(flight.plan.requests, flight.plan.num_tokens, strict=True)
        if one is request
    )
    pending = sum(one is request for flight in flights for one in flight.built.sampled)
    held = memory.tokens_of(request)
    if request.finished:
        raise IntegrityError(f"{request.request_id} has ended and is still live")
    if (in_flight, pending) != (request.num_inflight_tokens, request.num_pending_tokens):
        raise IntegrityError(f"{request.request_id} waits for a step that is not in flight")
    if keeps_cache and held is not None and held != request.num_computed_tokens:
        raise IntegrityError(
            f"{request.request_id} counts {request.num_computed_tokens} computed tokens and its "
            f"pages hold {held}"
        )
