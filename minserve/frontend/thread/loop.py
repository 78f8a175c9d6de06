"""The thread that owns an engine: takes commands, delivers chunks, and loses nothing when it ends.

Only this thread touches the engine. It knows mailboxes, not their readers, and holds no reference
to an `AsyncLLM`: when one is dropped, it is garbage-collected, and then its thread ends. However
the thread ends, every command is answered and every mailbox is closed.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable

from minserve.engine import Engine
from minserve.engine.recovery import describe
from minserve.frontend.outputs import failure
from minserve.frontend.thread.delivery import Delivery
from minserve.frontend.thread.inbox import Answer, EngineClosedError, Inbox
from minserve.frontend.thread.mailbox import Mailbox
from minserve.frontend.thread.watch import Health, Watch
from minserve.request import InvalidRequestError, Request

MOST_FAILURES = 3
"""After this many turns in succession with an error outside a step, the thread ends, because it
would only fail again."""
CLOSED = "this AsyncLLM is closed; make a new one"


class EngineThread:
    """Runs an engine until it is stopped. Calls may come from any thread."""

    def __init__(self, engine: Engine, watchdog_s: float | None) -> None:
        self.engine = engine
        self.process = os.getpid()
        """The process that has the thread."""
        self._inbox = Inbox()
        self._delivery = Delivery(engine, self._inbox.close_mailbox)
        self._watch = Watch(watchdog_s)
        self._num_failures = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="minserve-engine", daemon=True)
        self._thread.start()
        if watchdog_s is not None:
            threading.Thread(
                target=self._watch_steps,
                args=(min(watchdog_s / 4, 5.0),),
                name="minserve-watchdog",
                daemon=True,
            ).start()
        _THREADS.add(self)

    # -- from any thread ---------------------------------------------------------------------------

    def open(self, request_id: str) -> Mailbox:
        """A mailbox that will certainly be closed. Raises RuntimeError if the thread has ended."""
        return self._inbox.open(request_id)

    def add(self, mailbox: Mailbox, make: Callable[[], list[Request]]) -> None:
        """Add a request to the engine; an error raised by `make` ends the mailbox."""
        self._inbox.post(
            lambda: self._delivery.add(mailbox, make), lambda error: self.refuse(mailbox, error)
        )

    def refuse(self, mailbox: Mailbox, error: BaseException) -> None:
        """End a mailbox whose request the engine did not accept."""
        known = isinstance(error, (InvalidRequestError, EngineClosedError))
        told = error if known else failure(mailbox.request_id, error)
        self._inbox.close_mailbox(mailbox, told)

    def abort(self, mailbox: Mailbox) -> None:
        """End one mailbox's request, and no other with the same name. Does nothing
        if it has ended."""
        mailbox.aborted = True
        if not mailbox.ended:
            self.tell(lambda: self._delivery.abort(mailbox))

    def abort_name(self, request_id: str) -> None:
        """End the requests with this name."""
        if self.is_here:  # see `stop`
            for mailbox in self._inbox.named(request_id):
                self.abort(mailbox)

    def is_taken(self, request_id: str) -> bool:
        """True if an open mailbox has this name."""
        return bool(self._inbox.named(request_id))

    def ask(
        self,
        what: Callable[[], Answer],
        timeout_s: float | None,
        undo: Callable[[Answer], None] = lambda answer: None,
    ) -> Answer:
        """Make the thread call `what`, and wait for its answer; see `Inbox.ask`."""
        return self._inbox.ask(what, timeout_s, undo)

    def tell(self, what: Callable[[], None]) -> None:
        """Make the thread call `what` at some later time; never, if the thread has ended."""
        if self.is_here:  # see `stop`
            self._inbox.post(what, lambda error: None)

    def stop(self) -> None:
        """Ask the thread to end all requests, and then itself. Calling it twice does no harm."""
        if self.is_here:  # a forked child has no such thread, and may have copied a lock held by it
            self._inbox.close(CLOSED)

    @property
    def is_here(self) -> bool:
        """False in a process that was forked from the one with the thread."""
        return os.getpid() == self.process

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the thread to end; False if it has not."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def health(self) -> Health:
        """What the thread is doing now; in a forked process, it is closed."""
        closed = self._inbox.closed_by is not None or not self.is_here
        return self._watch.health(closed, self.engine.trace)

    # -- in the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        """Run turn after turn, until asked to stop or until an error ends the thread."""
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
        """One turn: commands, a step, chunks; False if asked to stop. Only an exit ends the thread:
        other errors end the requests they belong to."""
        try:
            if not self._obey(wait=not self.engine.has_work):
                return False
            if self.engine.has_work:
                self._step()
            with self._inbox.wakeups.together():
                self._delivery.deliver()
            self._num_failures = 0
        except SystemExit:
            raise
        except BaseException as error:
            self._num_failures += 1
            self._watch.failed(error)
            if self._num_failures > MOST_FAILURES:
                raise
            self._delivery.recover()
        return True

    def _obey(self, wait: bool) -> bool:
        """Run the commands that have arrived; False if asked to stop."""
        while True:
            try:
                command = self._inbox.next(wait)
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
                    self._delivery.recover()
            wait = False

    def _step(self) -> None:
        self._watch.begin_step()
        try:
            self.engine.step()
        except SystemExit:
            raise
        except BaseException as error:
            # The engine has ended the requests that this error belongs to; `deliver`
            # informs their readers.
            self._watch.failed(error)
        finally:
            self._watch.end_step()

    def _end(self, error: BaseException | None) -> None:
        """Close everything that is open, with the error that ended the thread if there was one."""
        if error is not None:
            self._inbox.break_off(f"the engine's thread ended: {describe(error)}; make a new one")
        try:
            try:
                if error is None:
                    self.engine.abort_all()
                    self._delivery.deliver()
            finally:
                self.engine.close()
        except BaseException as caught:
            error = error or caught
        for mailbox in self._inbox.empty():
            mailbox.put(failure(mailbox.request_id, error) if error else EngineClosedError(CLOSED))
        self._ended.set()

    # -- in the watchdog's thread ------------------------------------------------------------------

    def _watch_steps(self, every_s: float) -> None:
        """Report each step that takes too long, once."""
        reported: float | None = None
        while not self._ended.wait(every_s):
            start_s = self._watch.late_step()
            if start_s is not None and start_s != reported:
                reported = start_s
                self.engine.trace.note(self._watch.report(self._thread))


_THREADS: weakref.WeakSet[EngineThread] = weakref.WeakSet()
EXIT_TIMEOUT_S = 10.0


def _stop_all() -> None:
    """Stop all threads at the end of the process: a thread that is still inside torch while the
    interpreter shuts down would crash it."""
    threads = [thread for thread in _THREADS if thread.is_here]
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(EXIT_TIMEOUT_S)


atexit.register(_stop_all)
