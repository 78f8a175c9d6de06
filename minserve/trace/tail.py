"""Reads a trace on and on, each step and each finished request exactly once.

`RunTrace` keeps the newest ones only. A reader that comes now and then would miss what was dropped
in between, and a histogram over all steps could not be made. So a trace hands a step that it is
about to drop, and that its reader has not seen, to that reader. A reader that comes often enough
costs the engine nothing; for another one the engine's thread does the reading, a step at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from minserve.trace.snapshot import FinishedRequest
from minserve.trace.step import StepTrace

Unread = tuple[Sequence[StepTrace], Sequence[FinishedRequest], int, int]
"""New steps, new finished requests, and the numbers of the next ones."""


class Tail:
    """One reader of one trace, made by `RunTrace.follow`."""

    def __init__(
        self,
        unread: Callable[[int, int], AbstractContextManager[Unread]],
        read_step: Callable[[StepTrace], None],
        read_request: Callable[[FinishedRequest], None],
        first_step: int,
        first_request: int,
    ) -> None:
        self._unread = unread
        self._read_step = read_step
        self._read_request = read_request
        self._next_step, self._next_request = first_step, first_request
        # Always taken in this order: `_turn`, the trace's lock, `_reading`.
        self._turn = threading.RLock()
        self._reading = threading.RLock()

    def catch_up(self) -> None:
        """Read everything that is new. From any thread; the engine does not wait for it."""
        with self._turn:
            with self._unread(self._next_step, self._next_request) as unread:
                steps, requests, self._next_step, self._next_request = unread
                # Before the trace goes on: what it drops from now on is read after these.
                self._reading.acquire()
            try:
                self._read(steps, requests)
            finally:
                self._reading.release()

    def dropping_step(self, number: int, step: StepTrace) -> None:
        """Called by the trace, with its lock: this step is about to leave it."""
        if number >= self._next_step:
            self._next_step = number + 1
            with self._reading:
                self._read((step,), ())

    def dropping_request(self, number: int, request: FinishedRequest) -> None:
        """Called by the trace, with its lock: this request is about to leave it."""
        if number >= self._next_request:
            self._next_request = number + 1
            with self._reading:
                self._read((), (request,))

    def _read(self, steps: Sequence[StepTrace], requests: Sequence[FinishedRequest]) -> None:
        for step in steps:
            self._read_step(step)
        for request in requests:
            self._read_request(request)
