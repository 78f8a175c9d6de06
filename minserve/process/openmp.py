"""How OpenMP's threads wait for each other, set before torch loads the library.

By default GNU's library, which torch ships for Linux, lets a thread that waits for another spin
for about 300,000 turns, 3 to 20 ms. That is right on an idle machine. On a busy machine, the
thread that others wait for has often lost its core, and the spinning threads use up the time it
needs to continue: a step of a small model becomes 10 to 100 times slower. A wait of a few
hundred microseconds still covers the gaps inside a step; after it, the thread sleeps. The
library reads the variable once, when it is loaded, so this module imports nothing heavy and
`minserve` calls it first.

LLVM's library, which torch ships for macOS, yields its core while it spins and
ignores the variable.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping

SPIN_COUNT = 10_000
"""Turns that a waiting thread spins before it sleeps: 0.1 to 0.6 ms, depending on the processor.
Fewer cost throughput on a quiet machine, because threads that sleep within a step must be woken:
`minserve bench busy`."""

VARIABLE = "GOMP_SPINCOUNT"
CHOICES = (VARIABLE, "OMP_WAIT_POLICY")
"""Variables that decide how long a thread spins. If the user sets one of them, it is kept."""


def user_chose(environment: Mapping[str, str]) -> bool:
    """True if a wait policy is set that minserve did not set."""
    ours = {VARIABLE: str(SPIN_COUNT)}
    return any(environment.get(name, ours.get(name)) != ours.get(name) for name in CHOICES)


def set_spin_count(environment: MutableMapping[str, str]) -> None:
    """Limit spinning in processes started with `environment`, unless the user has set a wait
    policy."""
    if not user_chose(environment):
        environment[VARIABLE] = str(SPIN_COUNT)


def settle() -> str:
    """Limit spinning in this process if that is still possible; returns a sentence for
    `minserve info`."""
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
    """Free the threads that the calling thread's parallel regions keep waiting. False if the
    library is not GNU's, or not loaded.

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
