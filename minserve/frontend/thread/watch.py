"""Tracks what the engine's thread is doing, and reports a step that takes too long."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Literal

from minserve.clock import WallClock
from minserve.engine.recovery import describe
from minserve.trace import RunTrace


@dataclass(frozen=True)
class Health:
    """The state of an engine's thread at one moment."""

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


class Watch:
    """The thread records its steps and errors here; other threads read them."""

    def __init__(self, watchdog_s: float | None) -> None:
        self._watchdog_s = watchdog_s
        self._clock = WallClock()
        self._step_start_s: float | None = None
        self._num_steps = 0
        self._num_errors = 0
        self._last_error: str | None = None

    def begin_step(self) -> None:
        """Record that a step begins."""
        self._step_start_s = self._clock.now()

    def end_step(self) -> None:
        """Record that the step has ended, with or without an error."""
        self._num_steps += 1
        self._step_start_s = None

    def failed(self, error: BaseException) -> None:
        """Record an error of a step, or of the work around it."""
        self._num_errors += 1
        self._last_error = describe(error)

    def health(self, closed: bool, trace: RunTrace) -> Health:
        """The state of the thread now. The numbers of requests are those of the newest step in
        `trace`; `closed`: the thread accepts no more commands."""
        start_s = self._step_start_s
        step_s = 0.0 if start_s is None else max(0.0, self._clock.now() - start_s)
        last = trace.newest
        state: Literal["idle", "working", "stuck", "closed"] = "idle"
        if closed:
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

    def late_step(self) -> float | None:
        """Start of the current step, if it has taken longer than `watchdog_s`; otherwise None."""
        start_s = self._step_start_s
        if start_s is None or self._watchdog_s is None:
            return None
        return start_s if self._clock.now() - start_s > self._watchdog_s else None

    def report(self, thread: threading.Thread) -> str:
        """Log that a step takes too long, with the thread's stack; returns the message."""
        frame = sys._current_frames().get(thread.ident or 0)
        where = "".join(traceback.format_stack(frame)) if frame is not None else ""
        sentence = f"a step of the engine has taken more than {self._watchdog_s} s"
        logging.getLogger("minserve").error("%s; it is here:\n%s", sentence, where)
        return sentence
