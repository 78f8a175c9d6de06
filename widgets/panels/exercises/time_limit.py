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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")

GRACE_S = 1.0
"""How long the thread may take to end once it is told to."""
WALL_FACTOR = 6
"""Seconds on the clock for each second of the limit: for threads that wait and compute nothing."""
_TICK_S = 0.02

_stuck: list[tuple[threading.Thread, threading.Event]] = []
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


@contextmanager
def until(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Within it, `limited` ends its work and raises Cut as soon as `should_stop()` turns true."""
    before = getattr(_here, "should_stop", _never)
    _here.should_stop = should_stop
    try:
        yield
    finally:
        _here.should_stop = before


def _never() -> bool:
    return False


def limited(work: Callable[[], _T], seconds: float, extra_s: float = 0.0) -> _T:
    """What `work()` returns or raises.

    Raises TimeLimitError after `seconds` of the thread's own time, or after WALL_FACTOR times as
    long on the clock. `extra_s` more on the clock are for other processes that the work waits for.
    Raises Cut where `until` says to stop, and TimeLimitError at once while an earlier thread still
    runs that could not be ended.
    """
    if any(_end(*each) for each in list(_stuck)):
        raise TimeLimitError(
            "an endless loop of an earlier check still runs and cannot be stopped from here: "
            "restart the kernel",
            stuck=True,
        )
    _stuck.clear()
    outcome: dict[str, Any] = {}
    ended = threading.Event()

    clock: list[int] = []
    should_stop = getattr(_here, "should_stop", _never)

    def run() -> None:
        # What was planted a moment too late must not reach Python's own code behind this.
        with suppress(Cut):
            clock.extend(_own_clock())
            _here.seconds = seconds
            try:
                outcome["value"] = work()
            except BaseException as error:
                outcome["error"] = error
            finally:
                ended.set()
                _plant(threading.current_thread(), None)

    thread = threading.Thread(target=run, name="exercise", daemon=True)
    thread.start()
    start = time.monotonic()
    while not ended.wait(min(_TICK_S, seconds)):
        passed_s = time.monotonic() - start - extra_s
        spent_s = _read(clock[0]) if clock else passed_s
        if spent_s > seconds or passed_s > WALL_FACTOR * seconds:
            raise _too_long(thread, ended, seconds)
        if should_stop():
            if _end(thread, ended):
                _stuck.append((thread, ended))
            raise Cut
    if "error" in outcome:
        raise outcome["error"]
    value: _T = outcome["value"]
    return value


def _too_long(thread: threading.Thread, ended: threading.Event, seconds: float) -> TimeLimitError:
    frame = sys._current_frames().get(thread.ident or 0)
    message = f"it took longer than {seconds:g} s"
    stuck = _end(thread, ended)
    if stuck:
        _stuck.append((thread, ended))
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


def _end(thread: threading.Thread, ended: threading.Event) -> bool:
    """Tell the thread to end, again and again: one exception may fall into an `except:`. Returns
    whether it still runs."""
    latest = time.monotonic() + GRACE_S
    while not ended.is_set() and time.monotonic() < latest:
        _plant(thread, Cut)
        ended.wait(_TICK_S / 4)
    return not ended.is_set()


def _plant(thread: threading.Thread, error: type[BaseException] | None) -> None:
    """Let the thread raise this at its next instruction; None takes back what it has not raised."""
    planted = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), planted)
