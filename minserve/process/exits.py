"""At the end of the process, waits for the steps that are running.

If a daemon thread is inside torch while the interpreter shuts down, the process crashes and the
exit code is lost. So at exit no new step begins, and running steps are waited for. This is state of
the process, like the exit itself.
"""

from __future__ import annotations

import atexit
import threading

TIMEOUT_S = 10.0
"""Longest wait for a running step, in seconds."""


class ExitGate:
    """Steps run inside it; at the end of the process it lets no new step in."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition(threading.RLock())

    def __enter__(self) -> None:
        with self._changed:
            # At exit the main thread is here only if another exit handler steps an engine,
            # which is allowed.
            if self._closed and threading.current_thread() is not threading.main_thread():
                raise SystemExit
            self._inside += 1

    def __exit__(self, *ignored: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        """Let no new step in, and wait for the running ones."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, TIMEOUT_S)


GATE = ExitGate()
atexit.register(GATE.close)
