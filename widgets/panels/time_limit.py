"""A time limit for code that may never end: a reader's solution with an endless loop.

CPython only: an exception is planted into the thread between two of its instructions. A call into a
library that does not return, and a loop that catches every exception, cannot be ended this way.
The time is the thread's own, on a processor, so that a busy machine does not fail a right answer.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")

GRACE_S = 1.0
"""How long the thread may take to end once it is told to."""
WALL_FACTOR = 6
"""Seconds on the clock for each second of the limit: for threads that wait and compute nothing."""
_TICK_S = 0.02

_stuck: list[threading.Thread] = []
_here = threading.local()


def limit_s() -> float | None:
    """The limit that the calling code runs under: for work that hands its limit on."""
    return getattr(_here, "seconds", None)


class TimeLimitError(Exception):
    """Raised to the caller when the code took too long; `frame` is where it was then."""

    def __init__(self, message: str, frame: FrameType | None = None, stuck: bool = False) -> None:
        super().__init__(message)
        self.frame, self.stuck = frame, stuck


class Cut(BaseException):
    """What ends the thread: no Exception, so that `except Exception` does not swallow it."""


def limited(work: Callable[[], _T], seconds: float, extra_s: float = 0.0) -> _T:
    """What `work()` returns or raises.

    Raises TimeLimitError after `seconds` of the thread's own time, or after WALL_FACTOR times as
    long on the clock. `extra_s` more on the clock are for other processes that the work waits for.
    Raises TimeLimitError at once while an earlier thread still runs that could not be ended.
    """
    if any(_end(thread) for thread in list(_stuck)):
        raise TimeLimitError(
            "an endless loop of an earlier check still runs and cannot be stopped from here: "
            "restart the kernel",
            stuck=True,
        )
    _stuck.clear()
    outcome: dict[str, Any] = {}
    ended = threading.Event()

    clock: list[int] = []

    def run() -> None:
        clock.extend(_own_clock())
        _here.seconds = seconds
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error
        ended.set()

    thread = threading.Thread(target=run, name="exercise", daemon=True)
    thread.start()
    start = time.monotonic()
    while not ended.wait(min(_TICK_S, seconds)):
        passed_s = time.monotonic() - start - extra_s
        spent_s = _read(clock[0]) if clock else passed_s
        if spent_s > seconds or passed_s > WALL_FACTOR * seconds:
            raise _too_long(thread, seconds)
    if "error" in outcome:
        raise outcome["error"]
    value: _T = outcome["value"]
    return value


def _too_long(thread: threading.Thread, seconds: float) -> TimeLimitError:
    frame = sys._current_frames().get(thread.ident or 0)
    message = f"it took longer than {seconds:g} s"
    stuck = _end(thread)
    if stuck:
        _stuck.append(thread)
        message += " and cannot be stopped from here: restart the kernel"
    return TimeLimitError(message, frame, stuck)


def _own_clock() -> list[int]:
    """The clock of this thread's time on processors, where the system has one."""
    get = getattr(time, "pthread_getcpuclockid", None)
    return [] if get is None else [get(threading.get_ident())]


def _read(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:  # The thread has ended meanwhile.
        return 0.0


def _end(thread: threading.Thread) -> bool:
    """Tell the thread to end, again and again: one exception may fall into an `except:`. Returns
    whether it still runs."""
    latest = time.monotonic() + GRACE_S
    while thread.is_alive() and time.monotonic() < latest:
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Cut))
        thread.join(_TICK_S / 4)
    return thread.is_alive()
