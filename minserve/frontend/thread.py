"""The thread that owns an engine: commands in, chunks out, and nothing lost when it ends.

Only this thread touches the engine. It knows mailboxes, not readers: whoever reads may be gone, and
the thread keeps nothing of `AsyncLLM` alive. Whatever ends it, every command is answered and every
mailbox is closed.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from minserve.clock import WallClock
from minserve.config import ConfigError
from minserve.engine import Engine
from minserve.engine.recovery import EngineError, describe, is_interrupt
from minserve.frontend.outputs import StreamChunk, StreamCursor, failure, failure_of
from minserve.inputs.checks import checked, number, optional
from minserve.request import InvalidRequestError, Request

Answer = TypeVar("Answer")
Item = StreamChunk | BaseException | None
MOST_FAILURES = 3
"""Turns in a row that fail outside a step, after which the thread ends: it would only spin."""
CLOSED = "this AsyncLLM is closed; make a new one"


class Mailbox:
    """The chunks of one request on their way to its reader; None or an error is the last item."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.requests: list[Request] = []
        """Its samples, once the engine has taken them."""
        self.aborted = False
        self.ended = False
        """True once the reader was given the last item."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        # Reentrant: a signal handler or a finalizer may come here in the midst of it.
        self._lock = threading.RLock()
        self._closed = False

    def put(self, item: Item) -> None:
        """A chunk, an error, or None for the end; nothing comes after the end."""
        with self._lock:
            if self._closed:
                return
            self._closed = not isinstance(item, StreamChunk)
            self._items.put(item)
            self._wake()

    def _wake(self) -> None:
        for loop, event in self._listeners:
            # The reader's loop may be gone, with its reader.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever something has come."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.append(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def take(self, block: bool, timeout_s: float | None = None) -> StreamChunk | None:
        """The next chunk, or None at the end and ever after. Raises queue.Empty where there is
        nothing yet and the call must not block (longer than `timeout_s`), and the error that ended
        the request, once."""
        if self.ended:
            return None
        item = self._items.get(block=block, timeout=timeout_s)
        if isinstance(item, StreamChunk):
            return item
        self.ended = True
        # Others, threads and tasks, may wait for the same end.
        self._items.put(None)
        with self._lock:
            self._wake()
        if item is not None:
            raise item
        return None


@dataclass(frozen=True)
class Health:
    """How an engine's thread is doing, at one moment."""

    state: Literal["idle", "working", "stuck", "closed"]
    """ "stuck": the current step has taken longer than `watchdog_s`."""
    step_s: float
    """How long the current step has been running; 0 between steps."""
    num_steps: int
    num_running: int
    num_waiting: int
    num_errors: int
    """Steps that failed."""
    last_error: str | None


@dataclass(frozen=True)
class _Command:
    run: Callable[[], None]
    refuse: Callable[[BaseException], None]
    """Called instead where the thread cannot run it, or with what it raised."""


class EngineThread:
    """Runs an engine until it is stopped. Calls may come from any thread."""

    def __init__(self, engine: Engine, watchdog_s: float | None) -> None:
        self.engine = engine
        self._watchdog_s = watchdog_s
        self._clock = WallClock()
        self._process = os.getpid()
        # Reentrant: a signal handler or a finalizer may come here in the midst of it.
        self._door = threading.RLock()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._open: dict[Mailbox, None] = {}
        self._cursors: dict[Request, tuple[StreamCursor, Mailbox]] = {}
        self._step_start_s: float | None = None
        self._num_steps = 0
        self._num_errors = 0
        self._num_failures = 0
        self._last_error: str | None = None
        self._closed_by: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="minserve-engine", daemon=True)
        self._thread.start()
        if watchdog_s is not None:
            name = "minserve-watchdog"
            threading.Thread(target=self._watch, name=name, daemon=True).start()
        _THREADS.add(self)

    # -- from any thread ---------------------------------------------------------------------------

    def open(self, request_id: str) -> Mailbox:
        """A mailbox that is sure to be closed. Raises RuntimeError when the thread has ended."""
        mailbox = Mailbox(request_id)
        with self._door:
            self._check_open()
            self._open[mailbox] = None
        return mailbox

    def add(self, mailbox: Mailbox, make: Callable[[], list[Request]]) -> None:
        """Have the engine take a request; what `make` raises ends the mailbox."""
        self._post(lambda: self._add(mailbox, make), lambda error: self.refuse(mailbox, error))

    def refuse(self, mailbox: Mailbox, error: BaseException) -> None:
        """End a mailbox whose request the engine did not take."""
        known = isinstance(error, InvalidRequestError) or type(error) is RuntimeError
        self._close_mailbox(mailbox, error if known else failure(mailbox.request_id, error))

    def abort(self, mailbox: Mailbox) -> None:
        """End one mailbox's request, whatever others are called; one that has ended is left
        alone."""
        mailbox.aborted = True
        if not mailbox.ended:
            self._post(lambda: self._abort(mailbox), lambda error: None)

    def abort_name(self, request_id: str) -> None:
        """End the requests of this name."""
        with self._door:
            named = [mailbox for mailbox in self._open if mailbox.request_id == request_id]
        for mailbox in named:
            self.abort(mailbox)

    def ask(
        self,
        what: Callable[[], Answer],
        timeout_s: float,
        undo: Callable[[Answer], None] = lambda answer: None,
    ) -> Answer:
        """Have the thread do something, and wait for its answer. Where that takes too long it is
        not done, or undone: nobody has the answer."""
        answer: Future[Answer] = Future()
        with self._door:
            self._check_open()

        def run() -> None:
            if not answer.cancelled():
                found = what()
                try:
                    answer.set_result(found)
                except InvalidStateError:
                    undo(found)

        def refuse(error: BaseException) -> None:
            with suppress(InvalidStateError):
                answer.set_exception(error)

        self._post(run, refuse)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            if not answer.cancel():
                return answer.result()  # it came at the last moment
            raise late(timeout_s) from None

    def tell(self, what: Callable[[], None]) -> None:
        """Have the thread do something, some time; nothing where it has ended."""
        self._post(what, lambda error: None)

    def stop(self) -> None:
        """Ask the thread to end what runs, and itself. A second time is harmless."""
        if os.getpid() != self._process:
            return  # A forked child has no such thread, and its lock may be held for ever.
        with self._door:
            if self._closed_by is None:
                self._closed_by = CLOSED
                self._commands.put(None)

    @property
    def is_here(self) -> bool:
        """False in a process that was forked from the one that has the thread."""
        return os.getpid() == self._process

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the thread to end; False where it has not."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def health(self) -> Health:
        """What the thread is doing now."""
        start_s = self._step_start_s
        step_s = 0.0 if start_s is None else max(0.0, self._clock.now() - start_s)
        last = self.engine.trace.newest
        state: Literal["idle", "working", "stuck", "closed"] = "idle"
        if self._closed_by is not None:
            state = "closed"
        elif start_s is not None:
            stuck = self._watchdog_s is not None and step_s > self._watchdog_s
            state = "stuck" if stuck else "working"
        return Health(
            state=state,
            step_s=step_s,
            num_steps=self._num_steps,
            num_running=last.num_running if last is not None else 0,
            num_waiting=last.num_waiting if last is not None else 0,
            num_errors=self._num_errors,
            last_error=self._last_error,
        )

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise RuntimeError(self._closed_by)

    def _post(self, run: Callable[[], None], refuse: Callable[[BaseException], None]) -> None:
        with self._door:
            if self._closed_by is None:
                self._commands.put(_Command(run, refuse))
                return
        refuse(RuntimeError(self._closed_by))

    def _close_mailbox(self, mailbox: Mailbox, item: BaseException | None) -> None:
        mailbox.put(item)
        with self._door:
            self._open.pop(mailbox, None)

    # -- in the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        """Turn after turn; and whatever ends it, nothing is left open."""
        error: BaseException | None = None
        try:
            goes_on = True
            while goes_on:
                goes_on = self._turn()
        except BaseException as caught:
            error = caught
        finally:
            self._end(error)

    def _turn(self) -> bool:
        """Commands, a step, chunks; False when told to stop. Only an exit ends the thread: other
        errors end what they belong to."""
        try:
            if not self._obey(wait=not self.engine.has_work):
                return False
            if self.engine.has_work:
                self._step()
            self._deliver(self.engine.take_updates())
            self._num_failures = 0
        except SystemExit:
            raise
        except BaseException as error:
            self._num_failures += 1
            self._num_errors += 1
            self._last_error = describe(error)
            if self._num_failures > MOST_FAILURES:
                raise
            self._find_lost()
        return True

    def _obey(self, wait: bool) -> bool:
        """Run the commands that have come; False when told to stop."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            try:
                command.run()
            except SystemExit as error:
                command.refuse(error)
                raise
            except BaseException as error:
                command.refuse(error)
                if not isinstance(error, InvalidRequestError):
                    self._find_lost()
            wait = False

    def _find_lost(self) -> None:
        """After an error between engine and mailboxes: abort requests without a mailbox, and send
        mailboxes what they missed."""
        lost = [request for request in self.engine.live_requests() if request not in self._cursors]
        self.engine.abort_requests(lost)
        for request in lost:
            self.engine.forget(request)
        for request, (cursor, mailbox) in list(self._cursors.items()):
            if not cursor.ended:
                self._deliver([request])
            elif request in self._cursors:
                self._end_sample(request, mailbox)

    def _step(self) -> None:
        self._step_start_s = self._clock.now()
        try:
            self.engine.step()
        except SystemExit:
            raise
        except BaseException as error:
            # The engine has ended the requests it belongs to, and their readers are told.
            self._num_errors += 1
            self._last_error = describe(error)
        finally:
            self._num_steps += 1
            self._step_start_s = None

    def _add(self, mailbox: Mailbox, make: Callable[[], list[Request]]) -> None:
        mailbox.requests = make()
        for request in mailbox.requests:
            self._cursors[request] = (StreamCursor(), mailbox)
        if mailbox.aborted:
            self._abort(mailbox)

    def _abort(self, mailbox: Mailbox) -> None:
        self.engine.abort_requests(mailbox.requests)
        self._deliver(self.engine.take_updates())

    def _deliver(self, updates: Sequence[Request]) -> None:
        for request in updates:
            known = self._cursors.get(request)
            if known is None:
                continue
            cursor, mailbox = known
            try:
                mailbox.put(cursor.advance(self.engine, request))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._fail(mailbox, error)
                continue
            if cursor.ended:
                self._end_sample(request, mailbox)

    def _end_sample(self, request: Request, mailbox: Mailbox) -> None:
        if all(
            self._cursors[sample][0].ended for sample in mailbox.requests if sample in self._cursors
        ):
            for sample in mailbox.requests:
                self.engine.forget(sample)
            self._close_mailbox(mailbox, failure_of(mailbox.requests))
            for sample in mailbox.requests:
                self._cursors.pop(sample, None)

    def _fail(self, mailbox: Mailbox, error: BaseException) -> None:
        """A request whose text cannot be told ends."""
        for request in mailbox.requests:
            self._cursors.pop(request, None)
        self.engine.abort_requests(mailbox.requests)
        for request in mailbox.requests:
            self.engine.forget(request)
        self._close_mailbox(mailbox, failure(mailbox.request_id, error))

    def _end(self, error: BaseException | None) -> None:
        """Close everything that is open, with the error that ended the thread if there was one."""
        with self._door:
            if error is not None:
                self._closed_by = f"the engine's thread ended: {describe(error)}; make a new one"
        try:
            if error is None:
                self.engine.abort_all()
                self._deliver(self.engine.take_updates())
            self.engine.close()
        except BaseException as caught:
            error = error or caught
        while True:
            try:
                command = self._commands.get(block=False)
            except queue.Empty:
                break
            if command is not None:
                command.refuse(RuntimeError(self._closed_by))
        with self._door:
            left = list(self._open)
            self._open.clear()
        for mailbox in left:
            mailbox.put(failure(mailbox.request_id, error) if error else RuntimeError(CLOSED))
        self._ended.set()

    # -- the watchdog ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Report, once, a step that takes longer than it should, with where it stands."""
        assert self._watchdog_s is not None
        reported: float | None = None
        while not self._ended.wait(min(self._watchdog_s / 4, 5.0)):
            start_s = self._step_start_s
            if start_s is None or start_s == reported:
                continue
            if self._clock.now() - start_s > self._watchdog_s:
                reported = start_s
                frame = sys._current_frames().get(self._thread.ident or 0)
                where = "".join(traceback.format_stack(frame)) if frame is not None else ""
                sentence = f"a step of the engine has taken more than {self._watchdog_s} s"
                logging.getLogger("minserve").error("%s; it is here:\n%s", sentence, where)
                self.engine.trace.note(sentence)


def late(timeout_s: float) -> EngineError:
    """What is raised where the engine's thread did not answer in time."""
    return EngineError(
        f"the engine gave no answer within {timeout_s} s; health() says what it does"
    )


def check_seconds(name: str, value: object, least: float = 0.0) -> float | None:
    """A time to wait, in seconds; None: no limit. Raises ConfigError."""
    seconds: float | None = checked(name, value, optional(number(least, 1e9)), ConfigError)
    return seconds


_THREADS: weakref.WeakSet[EngineThread] = weakref.WeakSet()
EXIT_TIMEOUT_S = 10.0


def _stop_all() -> None:
    """At the end of the process: a thread inside torch when the interpreter goes takes it down."""
    threads = [thread for thread in _THREADS if thread.is_here]
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(EXIT_TIMEOUT_S)


atexit.register(_stop_all)
