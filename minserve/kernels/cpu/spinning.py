"""How long threads that wait for each other spin: long while cores are free, very briefly while
other programs use them.

Spinning saves a wake-up while the thread it waits for runs; if that thread has lost its core,
spinning delays it. For each thread, Linux counts how long it was ready to run without a core, which
distinguishes the two cases. GNU's OpenMP library reads its spin count only once, but spins only 100
turns whenever the process has more OpenMP threads than cores (its manual, GOMP_SPINCOUNT). So a
spare team of two sleeping threads is opened while other programs use the cores, and closed when
they are free again.

The operators, torch's and ours, keep their number of threads, so results do not change. On a system
without these counters, or if the user has set a wait policy, nothing is done. There is one governor
per process: cores and OpenMP's threads belong to the process, not to an engine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from minserve.clock import WallClock
from minserve.process.openmp import user_chose

INTERVAL_S = 0.2
"""Time between two reads of the counters; a read takes about 0.2 ms."""
LEAST_S = 0.02
"""An interval with less running and waiting time than this is ignored: the engine was idle."""
TAKEN, FREE = 0.15, 0.05
"""Share of the time ready to run that was spent waiting for a core. At TAKEN or more, spinning
stops; below FREE, in two successive reads, it starts again. A busy neighbour on two cores makes it
about 0.25; without other programs it is at most 0.03."""
LOOKS = 2
NEVER = float("inf")


def ready_times() -> tuple[float, float]:
    """Seconds that this process's threads ran, and seconds that they were ready without a core.
    Raises OSError or ValueError on a system without these counters."""
    ran = waited = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It has just ended.
            numbers = (task / "schedstat").read_bytes().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    if not ran:
        raise OSError("the system does not count how long threads wait for a core")
    return ran / 1e9, waited / 1e9


class Switch(Protocol):
    """Switches between short and normal spinning of waiting threads."""

    def on(self) -> None:
        """Spin only briefly. Raises RuntimeError if no thread can be started."""

    def off(self) -> None:
        """Spin as long as the library's settings say."""


class SpareTeam:
    """`Switch` for GNU's library. `open_team` gives the calling thread a team until it ends."""

    def __init__(self, open_team: Callable[[int], object]) -> None:
        self._open_team = open_team
        self._closed: threading.Event | None = None

    def on(self) -> None:
        """See `Switch.on`."""
        self._closed = closed = threading.Event()
        threading.Thread(
            target=self._hold, args=(closed,), name="minserve-spare-team", daemon=True
        ).start()

    def off(self) -> None:
        """See `Switch.off`."""
        if self._closed is not None:
            self._closed.set()

    def _hold(self, closed: threading.Event) -> None:
        # With two more, threads outnumber the cores, because torch has one for each core.
        self._open_team(2)
        closed.wait()


class SpinGovernor:
    """Checks from time to time whether this process's threads got a core when they were ready."""

    def __init__(
        self,
        switch: Switch,
        *,
        times: Callable[[], tuple[float, float]] = ready_times,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._switch, self._times, self._clock = switch, times, clock or WallClock().now
        self._last: tuple[float, float] | None = None
        self._free = 0  # consecutive reads that found free cores
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._next_s = NEVER if user_chose(os.environ) else self._clock()
        self.short = False
        """True while threads spin only briefly."""

    def step(self) -> None:
        """Called once per step, by any thread; reads the clock, and the counters only
        when it is time."""
        if self._clock() >= self._next_s and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    def _look(self) -> None:
        if os.getpid() != self._pid:
            self._next_s = NEVER  # A forked child has none of its parent's threads.
            return
        try:
            now = self._times()
        except (OSError, ValueError, IndexError):
            self._next_s = NEVER
            return
        before, self._last = self._last or now, now
        self._next_s = self._clock() + INTERVAL_S
        ran, waited = now[0] - before[0], now[1] - before[1]
        # Negative: a thread has ended, and its times are no longer counted.
        if min(ran, waited) < 0 or ran + waited < LEAST_S:
            return
        share = waited / (ran + waited)
        self._free = self._free + 1 if share < FREE else 0
        if not self.short and share > TAKEN:
            try:
                self._switch.on()
            except RuntimeError:
                self._next_s = NEVER  # A step must not fail because it cannot be made faster.
                return
            self.short = True
        elif self.short and self._free >= LOOKS:
            self.short = False
            self._switch.off()
