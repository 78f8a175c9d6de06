"""The benchmark's side of a checkout's process: starts it, sends it lines, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from minserve.process.openmp import CHOICES

SCRIPT = Path(__file__).parent / "side.py"


class CheckoutError(RuntimeError):
    """A checkout's process has ended, or it cannot run a case. The message says why."""


class Checkout:
    """One checkout, in its own process on one thread. Raises CheckoutError if it does not start.
    Between commands it blocks in a read and uses no CPU time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        inherited = {name: text for name, text in os.environ.items() if name not in CHOICES}
        # A file, because a full pipe that is not read would block the child.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**inherited, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            text=True,
        )
        try:
            self.cases: list[str] = self._answer()["cases"]
        except BaseException:
            self.close()
            raise

    @property
    def commit(self) -> str | None:
        """The commit that is checked out, with "+" if files have changed since; None outside
        of a repository."""
        try:
            hash_ = self._git("rev-parse", "--short=12", "HEAD")
            return hash_ + ("+" if self._git("status", "--porcelain", "-uno") else "")
        except (OSError, subprocess.CalledProcessError):
            return None

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self.folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def run(self, case: str, work: float, tokens: bool = False) -> dict[str, Any]:
        """See `side.answer`. Raises CheckoutError."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has ended; reading its answer says why.
            request = {"name": case, "work": work, "tokens": tokens}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise CheckoutError(f"{self.folder}: {case}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip()[-400:] or "it said nothing"
            raise CheckoutError(f"{self.folder}: its process ended with code {code}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer
