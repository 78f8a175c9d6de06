"""`pytest -m gpu`, in several processes at once: most of its time is compilation, on the host.

Only the files with such tests are collected, because the others need packages that a GPU machine
may not have. Tests that do not finish in time are counted as not finished.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minserve
from minserve.bench.gpu.setting import Setting
from minserve.clock import Clock

ROOT = Path(minserve.__file__).resolve().parent.parent
EXAMPLES = 12
"""Drawn cases of each property: each new shape has to be compiled."""
_MOST_PROCESSES = 8
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)
_ID = re.compile(r"^\S+::.+$", re.M)


def test_files(root: Path = ROOT) -> list[str]:
    """Files under `tests/` that have tests for a GPU, relative to `root`."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in (root / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )


def run_tests(setting: Setting) -> dict[str, Any]:
    """A row: how many tests passed, failed, were skipped, and did not finish in the rest of
    the part's time."""
    row: dict[str, Any] = {"name": "pytest -m gpu", "examples_per_property": EXAMPLES}
    row |= {"passed": 0, "failed": 0, "skipped": 0, "not_finished": 0, "failures": []}
    files = test_files()
    if importlib.util.find_spec("pytest") is None or not files:
        what = "no tests in this installation" if not files else "pytest is not installed"
        setting.record.skip(f"the kernels' tests: {what}")
        return row
    if setting.dry_run:
        setting.record.skip(f"the kernels' tests: they need a GPU ({', '.join(files)})")
        return row
    ids = _collect(files)
    row["collected"] = len(ids)
    count = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 2) // 2, len(ids)))
    outcomes = _run(
        [ids[first::count] for first in range(count)], setting.budget.left_s, setting.clock
    )
    for name, (outcome, text) in outcomes.items():
        kind = {"PASSED": "passed", "XFAIL": "passed", "SKIPPED": "skipped"}.get(outcome, "failed")
        row[kind] += 1
        if kind == "failed":
            row["failures"].append(f"{name}: {text}"[:400])
    row["not_finished"] = len(ids) - len(outcomes)
    if row["not_finished"]:
        setting.record.skip(f"{row['not_finished']} kernel tests: the part's time was over")
    return row


def _command(*words: str) -> list[str]:
    # Any installed version of pytest will do; the pinned one is for development.
    quiet = ["-o", "minversion=7.0", "-p", "no:cacheprovider", "-m", "gpu"]
    quiet += ["-p", "no:schemathesis"]  # of no use here, and it needs hypothesis
    return [sys.executable, "-m", "pytest", *quiet, *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "MINSERVE_TEST_EXAMPLES": str(EXAMPLES), "PYTHONUNBUFFERED": "1"}


def _collect(files: Sequence[str]) -> list[str]:
    done = subprocess.run(
        _command("--collect-only", "-q", *files),
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    found = _ID.findall(done.stdout)
    if not found:
        raise RuntimeError(f"no GPU test was collected: {(done.stdout + done.stderr)[-600:]}")
    return found


def _run(
    shares: Sequence[Sequence[str]], limit_s: float, clock: Clock
) -> dict[str, tuple[str, str]]:
    """Test -> (outcome, error message), for all tests that ended in time."""
    running = [
        subprocess.Popen(
            _command("-v", "--tb=line", *ids),
            cwd=ROOT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for ids in shares
    ]
    found: dict[str, tuple[str, str]] = {}
    deadline_s = clock.now() + limit_s
    for process in running:
        try:
            text, _ = process.communicate(timeout=max(0.1, deadline_s - clock.now()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
        found |= parse(text)
    return found


def parse(text: str) -> dict[str, tuple[str, str]]:
    """Results of each test in the output of `pytest -v --tb=line`, which may be cut off."""
    lines = "; ".join(re.findall(r"^(?:E|/|\S+\.py:\d+:).*$", text, re.M))
    return {
        name: (outcome, lines if outcome in ("FAILED", "ERROR") else "")
        for name, outcome in _OUTCOME.findall(text)
    }
