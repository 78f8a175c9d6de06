"""A time limit for code that may never end: a reader's solution with an endless loop.

CPython only: the exception is planted into the thread between two of its instructions, so a call
into a library that does not return cannot be cut short, only left behind.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

_GRACE_S = 0.5


class TimeLimitError(Exception):
    """Raised to the caller when the code took too long."""


class _Cut(BaseException):
    # Not an Exception, so that the reader's own `except Exception` does not swallow it.
    pass


def limited(work: Callable[[], _T], seconds: float) -> _T:
    """What `work()` returns or raises. Raises TimeLimitError after `seconds`."""
    outcome: dict[str, Any] = {}
    ended = threading.Event()

    def run() -> None:
        try:
            try:
                outcome["value"] = work()
            except _Cut:
                raise
            except BaseException as error:
                outcome["error"] = error
            ended.set()
        except _Cut:
            ended.set()

    thread = threading.Thread(target=run, name="exercise", daemon=True)
    thread.start()
    if not ended.wait(seconds):
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Cut))
        ended.wait(_GRACE_S)
        raise TimeLimitError(f"it took longer than {seconds:g} s; is there a loop that never ends?")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
