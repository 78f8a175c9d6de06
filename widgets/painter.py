"""One thread that draws: the newest state only, at most four times a second.

Whoever changes something asks for a drawing and returns at once, so it does not matter whether
callbacks run on a kernel's subshell or queue until a cell ends. The thread ends when nothing is
left to draw. Errors are kept where the chapter's last cell finds them. Knows nothing about what is
drawn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from widgets.workers import DRAWINGS_PER_S, Worker

INTERVAL_S = 1 / DRAWINGS_PER_S


class Painter:
    """Calls `draw()` from one thread. `draw` returns True to be called again (it is playing)."""

    def __init__(
        self,
        name: str,
        draw: Callable[[], bool],
        *,
        interval_s: float = INTERVAL_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._draw = draw
        self._interval_s = interval_s
        self._now = now
        self._changed = threading.Condition()
        self._wanted = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._next_s = -float("inf")
        self._errors = _Errors(name, self.close)
        self.drawings = 0
        """How often it drew."""

    @property
    def painting(self) -> bool:
        """True in the drawing thread: what changes there is no wish of the reader."""
        return threading.current_thread() is self._thread

    @property
    def error(self) -> BaseException | None:
        """What went wrong while drawing."""
        return self._errors.error

    def ask(self) -> None:
        """Draw soon. Several wishes before a drawing are one."""
        with self._changed:
            if self._closed:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"painter: {self._errors.name}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything asked for is drawn; False when that takes longer."""
        if self.painting:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout_s)

    def close(self) -> None:
        """Draw no more. What is being drawn is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait():
            try:
                again = self._draw()
            except Exception as error:
                self._errors.error, self._errors.state = error, "failed"
                again = False
                with self._changed:
                    self._wanted = False
            self.drawings += 1
            if again:
                with self._changed:
                    self._wanted = True

    def _wait(self) -> bool:
        """Until the next drawing is due; False, and the thread's end, where none is wanted."""
        with self._changed:
            while not self._closed and self._wanted:
                rest = self._next_s - self._now()
                if rest <= 0:
                    self._wanted = False
                    self._next_s = self._now() + self._interval_s
                    return True
                self._changed.wait(rest)
            self._thread = None
            self._changed.notify_all()
            return False


class _Errors(Worker):
    """Keeps a painter's error for `raise_panel_errors`; a cell that runs again closes it."""

    def __init__(self, name: str, close: Callable[[], None]) -> None:
        super().__init__(name)
        self._close = close

    def stop(self) -> None:
        """Close the painter."""
        self._close()
