"""Grade what was handed in: a process, a time and a memory for each piece of work.

The parent never runs a student's code. A process that ends without a result, takes too long or is
killed is a mark of zero with a sentence, and the next one is graded all the same. What goes wrong
before the student's code begins is no mark: that work is not graded.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widgets.grading.one import STARTED
from widgets.grading.submissions import Submission

_MEMORY = ("MemoryError", "Cannot allocate memory", "not enough memory", "bad_alloc")
_LAST_BYTES = 4000
"""Of what a process said before it ended: enough for the reason."""


@dataclass(frozen=True)
class Limits:
    """What one piece of work may take."""

    seconds: float
    """Wall-clock, the start of the process included."""
    memory_bytes: int
    """Beyond what the lab itself takes."""


@dataclass(frozen=True)
class Grade:
    """What one piece of work is worth, and why."""

    student: str
    exercise: str
    file: str
    status: str
    """passed, failed, not attempted, or not graded."""
    points: float
    out_of: float
    misconception: str = ""
    said: tuple[str, ...] = ()


def grade(
    submissions: Sequence[Submission],
    labs: Path,
    *,
    seed: int,
    limits: Limits,
    out_of: Callable[[str], float],
) -> Generator[Grade, None, None]:
    """A grade for each, one after the other. `seed` draws the randomised cases; `out_of` says what
    an exercise is worth at most. Equal for equal seeds, on any machine."""
    for submission in submissions:
        most = out_of(submission.exercise) if submission.exercise else 0.0
        result = _nothing("not graded", submission.problem)
        if not submission.problem:
            try:
                result = _judged(submission, labs, seed, limits)
            except OSError as error:  # a full disk, no process left
                result = _nothing("not graded", f"its process could not be started: {error}")
        yield Grade(
            student=submission.student,
            exercise=submission.exercise,
            file=str(submission.path),
            status=result["status"],
            points=min(result["points"], most),
            out_of=most,
            misconception=result["misconception"],
            said=tuple(result["said"]),
        )


def _nothing(status: str, why: str) -> dict[str, Any]:
    return {"status": status, "points": 0.0, "misconception": "", "said": [why]}


def _judged(submission: Submission, labs: Path, seed: int, limits: Limits) -> dict[str, Any]:
    """The result of one process, or a failure with the reason why there is none."""
    with tempfile.TemporaryDirectory(prefix="minserve-grade-") as name:
        room = Path(name)
        module, job, result = room / "submission.py", room / "job.json", room / "result.json"
        module.write_text(submission.source, encoding="utf-8", errors="replace")
        asked = {
            "exercise": submission.exercise,
            "labs": str(labs),
            "module": str(module),
            "seed": seed,
            "memory_bytes": limits.memory_bytes,
        }
        job.write_text(json.dumps(asked), encoding="utf-8")
        with (room / "errors.txt").open("w+b") as errors:
            problem = _run(job, result, errors, limits)
            errors.seek(0, os.SEEK_END)
            errors.seek(max(0, errors.tell() - _LAST_BYTES))
            last = errors.read().decode("utf-8", "replace")
        # Work that removes its own folder has begun.
        started = (room / STARTED).exists() or not job.exists()
        found = _read(result)
    if not started:
        return _nothing("not graded", f"before the student's code began, {problem or _why(last)}")
    if found is None or problem:
        return _nothing("failed", problem or _why(last, limits))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """The result that a process left; None where there is none, or one that is not of its kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        said = found["said"]
        sound = (
            found["status"] in ("passed", "failed", "not attempted")
            and isinstance(found["points"], int | float)
            and math.isfinite(found["points"])
            and isinstance(said, list)
            and all(isinstance(each, str) for each in [found["misconception"], *said])
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if sound else None


def _run(job: Path, result: Path, errors: Any, limits: Limits) -> str:
    """Start the process and wait; returns why it was ended, "" if it ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "widgets.grading.one", str(job), str(result)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        cwd=job.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        # A group of its own, so that what it starts ends with it.
        start_new_session=os.name == "posix",
    )
    try:
        process.wait(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        return f"its process took longer than {limits.seconds:g} s"
    finally:
        _end(process)
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _why(last: str, limits: Limits | None = None) -> str:
    if limits is not None and any(word in last for word in _MEMORY):
        return f"took more than {limits.memory_bytes >> 20} MB of memory"
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    said = f": {lines[-1]}" if lines else ""
    return f"its process ended before there was a result{said}"
