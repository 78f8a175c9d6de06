"""Which requests end when something fails, and whether the engine's records still agree.

An error ends the request it belongs to; where that cannot be told, its batch; where not even that
can, everything. Afterwards the books are audited: what an error or Ctrl-C left half-done must not
be found by the next request. Books that do not agree are begun anew. Decides which requests end;
the engine ends them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from minserve.engine.flight import Flight
from minserve.engine.prepare import Builder
from minserve.memory import IntegrityError, KVManager
from minserve.request import Request
from minserve.scheduling import Scheduler, StepPlan


class EngineError(RuntimeError):
    """The engine failed while it worked on a request; the cause is chained."""


class Recoverable(Protocol):
    """What recovery asks of an engine, whose books are requests, queues and pages."""

    def live_requests(self) -> list[Request]:
        """The requests that have not ended."""
        ...

    def culprit(self) -> Request | None:
        """The request that planning was looking at; None where its cause belongs to all."""
        ...

    def fail(self, request: Request, error: BaseException | None) -> None:
        """End a request with an error, or finish ending it."""
        ...

    def audit(self) -> None:
        """Raise IntegrityError where the books do not add up."""
        ...

    def start_over(self, error: BaseException | None) -> None:
        """End everything, and begin with empty books."""
        ...


class Recovery:
    """Guards every change of an engine's books."""

    def __init__(self, books: Recoverable) -> None:
        self.owners: Sequence[Request] | None = ()
        """Requests to end if the current stage raises. None: the one that planning was looking at;
        where there is none, all."""
        self._books = books
        self._torn = False
        """Set while the books change. Still set at the next call: the last change was interrupted,
        so repair first."""
        self._in_doubt: BaseException | None = None
        """What a row failed with in a step that went on: audit the books behind it."""
        self._num_fruitless = 0
        """Failures in a row that ended no request."""

    @contextlib.contextmanager
    def change(self, owners: Sequence[Request]) -> Iterator[None]:
        """While it is entered the books are being changed. What it raises ends the requests it
        belongs to, `owners` unless a stage knows better, and leaves books that add up."""
        self.repair()
        self._torn, self.owners = True, owners
        try:
            yield
            self._settle_doubt()
        except BaseException as error:
            self._recover(error)
            raise
        self._torn = False

    def repair(self) -> None:
        """Finish what an interruption has cut short, the handling of another error included."""
        if self._torn:
            self._recover(None)

    def fail_row(self, request: Request, error: BaseException) -> None:
        """End one request in the middle of a step that goes on for the others. An interrupt is no
        row's and ends the step."""
        if is_interrupt(error):
            raise error
        self._in_doubt = error
        self._books.fail(request, error)

    def _settle_doubt(self) -> None:
        """Where a row failed, go on only if the books still add up."""
        if self._in_doubt is None:
            return
        error, self._in_doubt = self._in_doubt, None
        try:
            self._books.audit()
        except Exception:
            self._books.start_over(error)

    def progress(self) -> None:
        """A step has succeeded, or a batch has left the device: trying again changes something."""
        self._num_fruitless = 0

    def _recover(self, error: BaseException | None) -> None:
        books = self._books
        try:
            num_live = len(books.live_requests())
            for request in list(self._blamed(error)):
                books.fail(request, error)
            if not is_interrupt(error) and len(books.live_requests()) == num_live:
                self._num_fruitless += 1
                # Nothing has ended, so nothing would change: the same step would fail again and
                # again.
                if self._num_fruitless > 1:
                    for request in books.live_requests():
                        books.fail(request, error)
            books.audit()
        except Exception as trouble:
            books.start_over(error or trouble)
        self._in_doubt = None
        self._torn = False

    def _blamed(self, error: BaseException | None) -> Sequence[Request]:
        """The requests that an error belongs to."""
        if self.owners is not None:
            return self.owners
        if is_interrupt(error):
            return ()
        culprit = self._books.culprit()
        return self._books.live_requests() if culprit is None else (culprit,)


def is_interrupt(error: BaseException | None) -> bool:
    """True for what comes from outside and says nothing about a request: Ctrl-C, an exit. None
    stands for one that struck while another was being dealt with."""
    return error is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def describe(error: BaseException | None) -> str:
    """What `Request.error` says of it, in one line."""
    if error is None:
        return "interrupted: the engine was stopped in the middle of a step"
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception may be as broken as what raised it
        text = ""
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
    live: Iterable[Request],
    flights: Sequence[Flight],
    keeps_cache: bool,
) -> None:
    """Verify that engine, scheduler and memory speak of the same requests and pages.

    Raises IntegrityError with the first thing that does not add up.
    """
    scheduler.check()
    memory.check()
    requests = set(live)
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
