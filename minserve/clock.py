"""The source of time. No other module of minserve reads a clock.

The engine, its traces and its metrics use a `Clock`, so that the same scheduler runs on the wall
clock with a real runner and on a virtual clock with a runner that charges modelled time.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of seconds that never goes back."""

    def now(self) -> float:
        """Seconds since an arbitrary origin."""
        ...

    def wait_until(self, deadline_s: float) -> None:
        """Return once `now() >= deadline_s`."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def wait_until(self, deadline_s: float) -> None:
        """Sleep until the deadline; return at once if it has passed."""
        remaining = deadline_s - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)


def process_cpu_s() -> float:
    """Seconds of CPU time used by all threads of this process."""
    return time.process_time()


def thread_cpu_s() -> float:
    """Seconds of CPU time used by the calling thread; other work on the machine is not included."""
    return time.thread_time()


class VirtualClock:
    """A clock that moves only when it is advanced: for modelled time, and for tests."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """The virtual time in seconds."""
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Advance by `duration_s` seconds. Raises ValueError for a negative duration."""
        if duration_s < 0:
            raise ValueError(f"time cannot run backwards: advance({duration_s}) seconds")
        self._now_s += duration_s

    def wait_until(self, deadline_s: float) -> None:
        """Jump to the deadline if it is in the future."""
        self._now_s = max(self._now_s, deadline_s)
