"""Raise an error once, at the n-th call or the n-th line that runs in chosen rooms."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import minserve

HOME = Path(minserve.__file__).parent
ROOMS = ("scheduling", "memory", "sampling", "attention", "engine", "execution")
"""Where errors are injected: everything a step runs through."""
DOORS = (*ROOMS, "llm.py", "async_llm.py", "frontend", "process/exits.py")


class Injected(RuntimeError):
    """An error that no code expects."""


class Panic(BaseException):
    """As pyo3's PanicException: no Exception, and no interrupt either."""


class Injector:
    """A context manager for one thread. `at`: which event raises, from 0; `fired` says whether it
    came to that, and `num_events` how many there were."""

    def __init__(
        self,
        make_error: Callable[[], BaseException],
        at: int,
        rooms: Iterable[str] = ROOMS,
        lines: bool = False,
    ) -> None:
        self._make_error = make_error
        self._at = at
        # A room that has moved would leave its tests passing without a single error in it.
        self._places = tuple(str((HOME / room).resolve(strict=True)) for room in rooms)
        self._lines = lines
        self._inside: dict[CodeType, bool] = {}
        self.fired: str | None = None
        self.num_events = 0

    def __enter__(self) -> Injector:
        sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        inside = self._inside.get(code)
        if inside is None:
            inside = self._inside[code] = code.co_filename.startswith(self._places)
        if not inside:
            return None
        if not self._lines:
            self._count(frame)
            return None
        return self._trace_line

    def _trace_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self._lets_go(frame):
            self._count(frame)
        return self._trace_line

    def _lets_go(self, frame: FrameType) -> bool:
        """True at a line with a lock: at its end the interpreter looks for no signal before the
        lock is free, but it does trace the line, and an error there would be of our own making."""
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return "with " in line and any(word in line for word in ("lock", "hold", "GATE"))

    def _count(self, frame: FrameType) -> None:
        number, self.num_events = self.num_events, self.num_events + 1
        if number == self._at:
            code = frame.f_code
            self.fired = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
            raise self._make_error()


def live_threads() -> set[str]:
    """Names of the threads that run now."""
    return {thread.name for thread in threading.enumerate()}
