"""The process in which one piece of work is judged: `python -m widgets.grading.one JOB RESULT`.

JOB and RESULT are JSON files. The exercise is loaded first; then the limits are set, the file
STARTED is made beside RESULT, and only then does the student's code run. What it prints goes
nowhere.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from widgets.panels.exercises.exercise import load_exercise, load_module, load_solution
from widgets.panels.exercises.judging import Report, check
from widgets.panels.exercises.returns import text_of

STARTED = "started"
"""Without it, a process that ended says nothing about the student's code."""

FILE_BYTES = 16 << 20
"""Largest file that a solution may write."""


def limit_memory(more_bytes: int) -> bool:
    """Let this process take `more_bytes` beyond what it has now; False where that is not known."""
    try:
        resource: Any = importlib.import_module("resource")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError):
        return False
    now = pages * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, now + more_bytes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        allowed = resource.getrlimit(what)[1]
        if allowed != resource.RLIM_INFINITY:  # a limit of the shell can only be lowered
            most = min(most, allowed)
        resource.setrlimit(what, (most, most))
    return True


def judge(job: dict[str, Any], started: Path) -> dict[str, Any]:
    """Load the exercise, set the limits, make `started`, run the work, and say what came out."""
    labs = Path(job["labs"])
    exercise = replace(load_exercise(job["exercise"], labs), seed=job["seed"])
    worked = load_solution(job["exercise"], exercise, labs)
    limited = limit_memory(job["memory_bytes"])
    started.touch()
    try:
        module = load_module(Path(job["module"]))
    except SyntaxError as error:
        line = (error.text or "").strip()
        return _nothing(exercise.function, f"a syntax error in `{line}`: {error.msg}")
    except BaseException as error:
        return _nothing(exercise.function, f"{type(error).__name__}: {text_of(error)}")
    solution = getattr(module, exercise.function, None)
    if solution is None:
        return _nothing(exercise.function, "it is not defined")
    report = check(solution, exercise, worked=worked and worked[0])
    return _result(report, exercise.score is not None) | {"memory_limited": limited}


def _nothing(function: str, why: str) -> dict[str, Any]:
    said = [f"`{function}` could not be loaded: {why}"]
    return {"status": "failed", "points": 0.0, "misconception": "", "said": said}


def _result(report: Report, scored: bool) -> dict[str, Any]:
    passed = report.status == "passed"
    points = float(passed)
    if report.score is not None and passed:
        # As in the notebook: better than the worked solution is shown, and counts as full marks.
        points += min(report.score.share, 1.0)
    return {
        "status": report.status,
        "points": points,
        "out_of": 1.0 + scored,
        "misconception": report.misconception.name if report.misconception else "",
        "said": report.sentences(),
    }


def main(arguments: list[str]) -> None:
    """Read the job, judge, write the result."""
    job, result = map(Path, arguments)
    found = judge(json.loads(job.read_text(encoding="utf-8")), result.with_name(STARTED))
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # a thread or a handler that the student's code left behind has no say
