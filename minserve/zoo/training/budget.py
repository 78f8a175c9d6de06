"""How long a training run may take, and how far it has come.

Knows steps, active minutes and deadlines; knows nothing about what is trained.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections import deque

from minserve.clock import Clock, WallClock


class Budget:
    """The progress of a run, from 0 to 1: by steps, by active minutes, or until a deadline.

    Time in which the process was stopped does not count as active. A deadline does not move:
    progress then jumps forward and the decay still completes.
    """

    def __init__(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        within_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        if steps is None and minutes is None and within_s is None:
            raise ValueError("A run needs an end: give --steps, --minutes or --until.")
        self.clock = clock or WallClock()
        self.steps, self.minutes = steps, minutes
        self.deadline_s = None if within_s is None else self.clock.now() + within_s
        self.recent: deque[float] = deque(maxlen=31)

    def active(self, elapsed_s: float) -> float:
        """The part of a step's `elapsed_s` that counts: a pause is replaced by a usual step."""
        usual = statistics.median(self.recent) if len(self.recent) >= 5 else math.inf
        self.recent.append(elapsed_s)
        return elapsed_s if elapsed_s < 4.0 * usual else usual

    def remaining_s(self, active_s: float) -> float:
        """Seconds until the first of the time limits."""
        ends = [math.inf]
        if self.minutes is not None:
            ends.append(self.minutes * 60.0 - active_s)
        if self.deadline_s is not None:
            ends.append(self.deadline_s - self.clock.now())
        return min(ends)

    def progress(self, step: int, active_s: float) -> float:
        """Progress from 0 to 1."""
        if self.steps is not None:
            return step / self.steps
        remaining = self.remaining_s(active_s)
        return 1.0 if remaining <= 0.0 else active_s / (active_s + remaining)


def seconds_until(text: str) -> float:
    """Seconds from now to the next moment at which clocks in UTC show HH:MM."""
    try:
        clock = datetime.time.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--until takes a time of day in UTC such as 09:30; got {text!r}."
        ) from None
    now = datetime.datetime.now(datetime.UTC)
    then = datetime.datetime.combine(now.date(), clock, datetime.UTC)
    wait = then - now if then > now else then + datetime.timedelta(days=1) - now
    return wait.total_seconds()
