"""How OpenMP's threads wait for each other, settled before torch loads the library.

By default GNU's library, which torch brings for Linux, lets a thread that waits for another spin
for about 300,000 turns, 3 to 20 ms. That is right on an idle machine. Beside a busy program the
thread that is waited for has often lost its core, and the spinning thread uses up the time it needs
to come back: a step of a small model becomes 10 to 100 times slower. A wait of a few hundred
microseconds still covers the gaps inside a step, and then the thread sleeps. The library reads the
variable once, when it is loaded, so this module imports nothing heavy and `minserve` calls it
first.

LLVM's library, which torch brings for macOS, yields its core while it spins and ignores the
variable.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping

SPIN_COUNT = 10_000
"""Turns a waiting thread spins before it sleeps: 0.1 to 0.6 ms, by processor. Fewer cost throughput
on a quiet machine, where a thread that sleeps in a step has to be woken: `minserve bench busy`."""

VARIABLE = "GOMP_SPINCOUNT"
CHOICES = (VARIABLE, "OMP_WAIT_POLICY")
"""Variables that decide how long a thread spins. A user who sets one of them keeps it."""


def user_chose(environment: Mapping[str, str]) -> bool:
    """True if a wait policy is set that minserve did not set."""
    ours = {VARIABLE: str(SPIN_COUNT)}
    return any(environment.get(name, ours.get(name)) != ours.get(name) for name in CHOICES)


def set_spin_count(environment: MutableMapping[str, str]) -> None:
    """Bound spinning in processes started with `environment`, where the user has not chosen."""
    if not user_chose(environment):
        environment[VARIABLE] = str(SPIN_COUNT)


def settle() -> str:
    """Bound spinning in this process while that is still possible; returns a sentence for `minserve
    info`."""
    if user_chose(os.environ):
        chosen = [f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ]
        return f"waiting threads follow {' and '.join(chosen)}"
    if "torch" in sys.modules and VARIABLE not in os.environ:
        return (
            "torch was imported before minserve, so waiting threads spin as long as OpenMP's "
            f"default says: import minserve first, or set {VARIABLE}={SPIN_COUNT}"
        )
    set_spin_count(os.environ)
    return f"waiting threads spin {SPIN_COUNT} turns, then sleep ({VARIABLE}, set by minserve)"


def release_team() -> bool:
    """Give back the threads that the calling thread's parallel regions keep waiting; False where
    the library is not GNU's, or not loaded.

    A model is often loaded by one thread and served by another. With a team for each there are more
    OpenMP threads than cores, and GNU's library then lets none of them spin. The next parallel
    region of this thread starts its team again.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            path = next(line.split()[-1] for line in maps if "libgomp" in line)
        return int(ctypes.CDLL(path).omp_pause_resource_all(1)) == 0
    except (OSError, StopIteration, AttributeError):
        return False
