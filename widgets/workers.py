"""Threads for panels, one design for all: validate, start one worker, return.

A run is one daemon thread with a stop event; it is the only writer of its panel's figures. Engines
take turns: one run at a time in the whole process, the others wait in line. Errors are kept and
raised again by `raise_panel_errors()` in a chapter's last cell. Knows nothing about what a run
does, nor about widgets and figures.
"""

from __future__ import annotations

import atexit
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

from widgets.theme import headless

State = Literal["idle", "waiting", "running", "done", "stopped", "failed"]

DRAWINGS_PER_S = 4


class Stopped(Exception):
    """Raised inside a run that was told to stop."""


@dataclass(eq=False)
class _Ticket:
    name: str
    thread: int


class _Line:
    """The line of runs: first come, first served; the head holds the machine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[_Ticket] = deque()

    def join(self, name: str) -> _Ticket:
        """Take a place in line for a thread that is about to start."""
        ticket = _Ticket(name, 0)
        with self._changed:
            self._tickets.append(ticket)
        return ticket

    @contextmanager
    def turn(
        self,
        name: str,
        should_stop: Callable[[], bool],
        on_wait: Callable[[str], None],
        ticket: _Ticket | None = None,
    ) -> Iterator[None]:
        own = threading.get_ident()
        with self._changed:
            nested = ticket is None and bool(self._tickets) and self._tickets[0].thread == own
            if ticket is None:
                ticket = _Ticket(name, own)
                if not nested:
                    self._tickets.append(ticket)
            ticket.thread = own
        if nested:
            yield
            return
        try:
            told = ""
            while (holder := self._holder()) is not ticket:
                if should_stop():
                    raise Stopped
                if holder.name != told:
                    told = holder.name
                    on_wait(told)
                with self._changed:
                    # Woken when the line moves; the limit is for a stop, which wakes nobody.
                    if self._tickets[0] is not ticket:
                        self._changed.wait(0.1)
            yield
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def _holder(self) -> _Ticket:
        with self._changed:
            return self._tickets[0]


_line = _Line()


@contextmanager
def engine_turn(
    name: str,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> Iterator[None]:
    """Have the machine alone: `with engine_turn("this cell"): llm.generate(...)`.

    Torch's thread count is the process's, so engines never run at once. `on_wait` is told whose
    end is waited for. Raises Stopped when `should_stop()` turns true in line. A thread that has its
    turn may ask again.
    """
    with _line.turn(name, should_stop, on_wait):
        yield


class Job:
    """A run as the work sees it: whether to stop, and where to report how far it is."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """True once a stop was asked for."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise Stopped when told to stop."""
        if self.stopping:
            raise Stopped

    def report(self, share: float, text: str) -> None:
        """How far the run is, 0 to 1, and what it does now."""
        self._worker._report(min(max(share, 0.0), 1.0), text)


class Worker:
    """The runs of one panel, one at a time. `on_change` hears of every change, from any thread."""

    def __init__(self, name: str, on_change: Callable[[Worker], None] | None = None) -> None:
        self.name = name
        self.state: State = "idle"
        self.error: BaseException | None = None
        self.result: Any = None
        self.share = 0.0
        self.text = ""
        """What the run does now, or for whom it waits."""
        self._on_change = on_change or (lambda worker: None)
        self._lock = threading.Lock()
        # One word at a time, or a stop's could come after the end's.
        self._telling = threading.RLock()
        self._job: Job | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._cell = current_cell()
        _retire_older(self)
        _live.add(self)

    @property
    def busy(self) -> bool:
        """True while a run waits for its turn or goes on."""
        return not self._ended.is_set()

    @property
    def stopping(self) -> bool:
        """True from a stop to the end of the run."""
        return self.busy and self._job is not None and self._job.stopping

    @property
    def own_thread(self) -> bool:
        """True when asked by the run itself."""
        return self.busy and self._thread is threading.current_thread()

    def start(self, work: Callable[[Job], Any]) -> bool:
        """Start a run and return; False when one is under way. Headless, the run happens now."""
        with self._lock:
            if self.busy:
                return False
            self._job = job = Job(self)
            self._ended.clear()
            self.error, self.result, self.share, self.text = None, None, 0.0, ""
            self.state = "waiting"
        if headless():
            self._thread = None
            self._run(work, job)
        else:
            # In line before the thread begins: runs take turns in the order they were asked for.
            ticket = _line.join(self.name)
            self._thread = threading.Thread(
                target=self._run, args=(work, job, ticket), name=f"panel: {self.name}", daemon=True
            )
            self._thread.start()
        return True

    def stop(self) -> None:
        """Ask the run to end; it does within a step. Harmless when none is under way."""
        job = self._job
        if job is not None:
            job._stop.set()
        if self.busy:
            self._tell()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the run's end; False when it outlasts `timeout_s`. Interrupting it stops it."""
        if self._thread is threading.current_thread():
            raise RuntimeError(f"{self.name}: a run cannot wait for itself")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            # In short waits, so that an interrupted cell hears of it on every platform.
            while not self._ended.wait(0.1):
                if deadline is not None and time.monotonic() >= deadline:
                    return False
        except KeyboardInterrupt:
            self.stop()
            raise
        return True

    def _run(self, work: Callable[[Job], Any], job: Job, ticket: _Ticket | None = None) -> None:
        state: State = "done"
        try:
            with _line.turn(self.name, lambda: job.stopping, self._wait_for, ticket):
                self.state = "running"
                self._tell()
                self.result = work(job)
        except Stopped:
            state = "stopped"
        except BaseException as error:
            # Whatever it was, the panel shows it and the last cell raises it.
            self.error, state = error, "failed"
            if isinstance(error, KeyboardInterrupt) and self._thread is None:
                self.error, state = None, "stopped"
                raise
        finally:
            self.state = state
            self._tell()
            self._ended.set()

    def _wait_for(self, holder: str) -> None:
        self.text = f"Waiting for “{holder}” to finish."
        self._tell()

    def _report(self, share: float, text: str) -> None:
        self.share, self.text = share, text
        self._tell()

    def _tell(self) -> None:
        try:
            with self._telling:
                self._on_change(self)
        except Exception as error:
            if self.error is None:
                self.error = error
            self.state = "failed"


_live: WeakSet[Worker] = WeakSet()


def current_cell() -> tuple[str, str] | None:
    """(cell, message) of the notebook cell that is running; None where nobody says."""
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        return parent["metadata"]["cellId"], parent["header"]["msg_id"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None


def _retire_older(worker: Worker) -> None:
    """A cell that runs again replaces its panels: the old ones stop, and their errors are past."""
    if worker._cell is None:
        return
    for other in list(_live):
        if other._cell and other._cell[0] == worker._cell[0] and other._cell[1] != worker._cell[1]:
            other.stop()
            _live.discard(other)


def raise_panel_errors(wait_s: float = 0.0) -> None:
    """Raise what went wrong in the panels, if anything did: for a chapter's last cell.

    Waits at most `wait_s` for runs under way. One error is raised as it was, several as a group.
    """
    deadline = time.monotonic() + wait_s
    errors: list[BaseException] = []
    for worker in sorted(_live, key=lambda each: each.name):
        if wait_s:
            worker.wait(max(0.0, deadline - time.monotonic()))
        if worker.error is not None:
            note = f"in the panel “{worker.name}”"
            if note not in getattr(worker.error, "__notes__", ()):
                worker.error.add_note(note)
            errors.append(worker.error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} panels failed", errors)


def describe_error(error: BaseException) -> str:
    """The traceback as text."""
    return "".join(traceback.format_exception(error))


class Pace:
    """When to draw: at most 4 times a second, and never more than a fifth of the time."""

    def __init__(self, per_s: float = DRAWINGS_PER_S) -> None:
        self._interval_s = 1 / per_s
        self._next_s = 0.0

    def draw(self, drawing: Callable[[], object]) -> bool:
        """Draw now if it is time; True when it was."""
        start = time.monotonic()
        if start < self._next_s:
            return False
        drawing()
        cost = time.monotonic() - start
        self._next_s = start + max(self._interval_s, 5 * cost)
        return True


def _stop_all() -> None:
    # A daemon thread inside torch while the interpreter shuts down may crash it.
    for worker in list(_live):
        worker.stop()
    for worker in list(_live):
        worker._ended.wait(1.0)


atexit.register(_stop_all)
