"""The end of the process waits for steps under way.

A daemon thread that is inside torch while the interpreter shuts down crashes the process, and the
exit code is lost. So at exit no new step begins, and running steps are waited for. This is state of
the process, like the exit itself.
"""

from __future__ import annotations

import atexit
import threading

TIMEOUT_S = 10.0
"""A step that takes longer is not waited for."""


class ExitGate:
    """Steps pass through it; at the end of the process it closes."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition(threading.RLock())

    def __enter__(self) -> None:
        with self._changed:
            # At exit the main thread is here only if another exit handler steps an engine, which it
            # may.
            if self._closed and threading.current_thread() is not threading.main_thread():
                raise SystemExit
            self._inside += 1

    def __exit__(self, *ignored: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        """Let no new step in and wait for the others."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, TIMEOUT_S)


GATE = ExitGate()
atexit.register(GATE.close)
