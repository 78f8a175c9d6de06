"""Which requests end when something fails, and whether the engine's state is still consistent.

An error ends one request; if we cannot tell which, the batch; if we cannot tell that, all requests.
Then the state of the engine is audited, so that the next request does not find a change that an
error or Ctrl-C left half-done. If the audit fails, the engine starts again with empty queues and
pages. This file decides which requests end; the engine ends them.
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
    """What recovery needs of an engine. The engine's "books" are its requests, queues and pages."""

    def live_requests(self) -> list[Request]:
        """The requests that have not ended."""
        ...

    def culprit(self) -> Request | None:
        """The request that was being planned; None if the cause belongs to all requests."""
        ...

    def fail(self, request: Request, error: BaseException | None) -> None:
        """End a request with an error, or finish ending it."""
        ...

    def audit(self) -> None:
        """Raise IntegrityError if the parts of the state disagree."""
        ...

    def start_over(self, error: BaseException | None) -> None:
        """End all requests, and start again with empty queues and pages."""
        ...


class Recovery:
    """Guards every change of an engine's state."""

    def __init__(self, books: Recoverable) -> None:
        self.owners: Sequence[Request] | None = ()
        """Requests to end if the current stage raises. None: the request that was being planned, or
        if there is none, all."""
        self._books = books
        self._torn = False
        """True while the state changes. If it is still True at the next call, the last change was
        interrupted and must be repaired first."""
        self._in_doubt: BaseException | None = None
        """The error of a row in a step that continued: the state must be audited after the step."""
        self._num_fruitless = 0
        """Failures in succession that ended no request."""

    @contextlib.contextmanager
    def change(self, owners: Sequence[Request]) -> Iterator[None]:
        """Wrap every change of state in this.

        An exception ends `owners`, or the requests that the current stage has named. Afterwards the
        state is consistent.
        """
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
        """Finish a change that was interrupted, even if that was the handling of another error."""
        if self._torn:
            self._recover(None)

    def fail_row(self, request: Request, error: BaseException) -> None:
        """End one request in the middle of a step that continues for the others. An interrupt
        belongs to no row and ends the step."""
        if is_interrupt(error):
            raise error
        self._in_doubt = error
        self._books.fail(request, error)

    def raise_row_error(self) -> None:
        """Raise the error of a row that failed in this step, if one did: no request is left that
        the step could continue for."""
        if self._in_doubt is not None:
            raise self._in_doubt

    def _settle_doubt(self) -> None:
        """After a failed row, continue only if the state is still consistent."""
        if self._in_doubt is None:
            return
        error, self._in_doubt = self._in_doubt, None
        try:
            self._books.audit()
        except Exception:
            self._books.start_over(error)

    def progress(self) -> None:
        """Report that a step succeeded or a batch left the device: trying again can have another
        result."""
        self._num_fruitless = 0

    def _recover(self, error: BaseException | None) -> None:
        books = self._books
        try:
            num_live = len(books.live_requests())
            for request in list(self._blamed(error)):
                books.fail(request, error)
            if not is_interrupt(error) and len(books.live_requests()) == num_live:
                self._num_fruitless += 1
                # No request has ended, so the state is the same and the same step would fail again
                # and again.
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
    """True for an event from outside that says nothing about a request: Ctrl-C, an exit.

    None: an interrupt that arrived while another error was being handled.
    """
    return error is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def describe(error: BaseException | None) -> str:
    """One line about the error, for `Request.error`."""
    if error is None:
        return "interrupted: the engine was stopped in the middle of a step"
    try:
        text = " ".join(str(error).split())
    except Exception:  # converting an exception to text may fail too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def failing_rows(builder: Builder, plan: StepPlan) -> list[Request]:
    """The requests of a plan whose rows cannot be built even alone; building changes no state."""
    failing = []
    for request in plan.requests:
        try:
            builder.build(plan.alone(request))
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
) -> None:
    """Verify that engine, scheduler and memory have the same requests and pages.

    Raises IntegrityError with the first disagreement.
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
        _check_request(request, flights)


def _check_request(request: Request, flights: Sequence[Flight]) -> None:
    in_flight = sum(
        count
        for flight in flights
        for one, count in zip(flight.plan.requests, flight.plan.num_tokens, strict=True)
        if one is request
    )
    pending = sum(one is request for flight in flights for one in flight.built.sampled)
    if request.finished:
        raise IntegrityError(f"{request.request_id} has ended and is still live")
    if (in_flight, pending) != (request.num_inflight_tokens, request.num_pending_tokens):
        raise IntegrityError(f"{request.request_id} waits for a step that is not in flight")
    if request.num_computed_tokens >= request.num_tokens:  # the newest token is always left
        raise IntegrityError(
            f"{request.request_id} counts {request.num_computed_tokens} computed tokens and knows "
            f"only {request.num_tokens}"
        )
