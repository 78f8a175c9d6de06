"""What other threads give to the engine's thread: commands, and mailboxes for the answers.

Every command is either run or refused, and every mailbox is closed in the end, even if the thread
dies. Knows nothing about the engine.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from minserve.engine.recovery import EngineError
from minserve.frontend.thread.mailbox import Mailbox
from minserve.frontend.thread.wakeups import Wakeups

Answer = TypeVar("Answer")


class EngineClosedError(RuntimeError):
    """The engine's thread has ended, or is about to: it accepts nothing more."""


@dataclass(frozen=True)
class Command:
    """A command for the engine's thread."""

    run: Callable[[], None]
    refuse: Callable[[BaseException], None]
    """Called with the error if `run` raised, or instead of `run` if the thread has ended."""


class Inbox:
    """A queue of commands and the set of open mailboxes. Calls may come from any thread."""

    def __init__(self) -> None:
        self.closed_by: str | None = None
        """Why no more commands are accepted; None while the inbox is open."""
        self.wakeups = Wakeups()
        """Wakes the readers of the mailboxes."""
        self.mailboxes: dict[str, list[Mailbox]] = {}
        """The mailboxes that are not closed yet, by name."""
        # Reentrant: a signal handler or a finalizer may interrupt this code and call it.
        self._lock = threading.RLock()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()

    def open(self, request_id: str) -> Mailbox:
        """A new mailbox. Raises EngineClosedError if the inbox is closed."""
        mailbox = Mailbox(request_id, self.wakeups)
        with self._lock:
            self._check_open()
            self.mailboxes.setdefault(request_id, []).append(mailbox)
        return mailbox

    def named(self, request_id: str) -> list[Mailbox]:
        """The open mailboxes with this name."""
        with self._lock:
            return list(self.mailboxes.get(request_id, ()))

    def close_mailbox(self, mailbox: Mailbox, item: BaseException | None) -> None:
        """Put the last item: the error that ended the request, or None."""
        mailbox.put(item)
        with self._lock:
            same = self.mailboxes.get(mailbox.request_id, [])
            if mailbox in same:
                same.remove(mailbox)
            if not same:
                self.mailboxes.pop(mailbox.request_id, None)

    def post(self, run: Callable[[], None], refuse: Callable[[BaseException], None]) -> None:
        """Queue a command, or refuse it if the inbox is closed."""
        with self._lock:
            if self.closed_by is None:
                self._commands.put(Command(run, refuse))
                return
        refuse(EngineClosedError(self.closed_by))

    def ask(
        self,
        what: Callable[[], Answer],
        timeout_s: float | None,
        undo: Callable[[Answer], None] = lambda answer: None,
    ) -> Answer:
        """Make the thread call `what`, and wait for the result.

        After `timeout_s` (None: no limit) the command is cancelled and EngineError is raised. After
        that, or after an interrupt, no caller waits for the result: if the command is already
        running, its result goes to `undo`, in the thread. Raises
        RuntimeError if the inbox is closed, and any error that `what` raised.
        """
        answer: Future[Answer] = Future()
        with self._lock:
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

        self.post(run, refuse)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            if not answer.cancel():
                return answer.result()  # it arrived at the last moment
            assert timeout_s is not None
            raise late(timeout_s) from None
        except BaseException:
            if not answer.cancel() and answer.exception() is None:  # an interrupt, after the answer
                self.post(lambda: undo(answer.result()), lambda error: None)
            raise

    def close(self, reason: str) -> None:
        """Accept no more commands, and tell the thread to end. Calling it twice does no harm."""
        with self._lock:
            if self.closed_by is None:
                self.closed_by = reason
                self._commands.put(None)

    def _check_open(self) -> None:
        if self.closed_by is not None:
            raise EngineClosedError(self.closed_by)

    # -- called by the engine's thread -------------------------------------------------------------

    def next(self, wait: bool) -> Command | None:
        """The next command; None if the thread is to end. Raises queue.Empty if there is none and
        `wait` is false."""
        return self._commands.get(block=wait)

    def break_off(self, reason: str) -> None:
        """Accept no more commands because the thread is ending with an error, which is `reason`."""
        with self._lock:
            self.closed_by = reason

    def empty(self) -> list[Mailbox]:
        """Refuse the commands that are left, and return the mailboxes that are still open. The
        inbox must be closed."""
        while True:
            try:
                command = self._commands.get(block=False)
            except queue.Empty:
                break
            if command is not None:
                command.refuse(EngineClosedError(self.closed_by))
        with self._lock:
            left = [mailbox for same in self.mailboxes.values() for mailbox in same]
            self.mailboxes.clear()
        return left


def late(timeout_s: float) -> EngineError:
    """The error to raise if the engine's thread did not answer in time."""
    return EngineError(
        f"the engine gave no answer within {timeout_s} s; health() says what it does"
    )
