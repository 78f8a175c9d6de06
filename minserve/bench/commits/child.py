"""The benchmark's side of a checkout's process: starts it, sends it lines, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from minserve.bench.commits.side import MARK
from minserve.process.openmp import CHOICES

TIMEOUT_S = 600.0
"""Seconds that an answer may take, for the usual share of a case's work or less."""
SCRIPT = Path(__file__).parent / "side.py"


class CheckoutError(RuntimeError):
    """A checkout's process has ended, or it cannot run a case. The message says why."""


class Checkout:
    """One checkout, in its own process on one thread. Raises CheckoutError if it does not start.
    Between commands it blocks in a read and uses no CPU time."""

    def __init__(self, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.folder = folder.resolve()
        self._timeout_s = timeout_s
        self._hangs: CheckoutError | None = None
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
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A thread, because a read from a pipe has no timeout.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._answer(timeout_s)  # It is ready.
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
        if self._hangs is not None:
            raise self._hangs
        with contextlib.suppress(OSError):  # It has ended; reading its answer says why.
            request = {"name": case, "work": work, "tokens": tokens}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._answer(self._timeout_s * max(1.0, work))
        if "error" in answer:
            raise CheckoutError(f"{self.folder}: {case}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # What is left in the buffer has no reader any more.
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._reader.join(timeout=1)  # A process that the child started may keep its stdout open.
        self._said.close()

    def _read(self) -> None:
        """Pass on the answers, and None when stdout ends. Drops what the checkout prints."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith(MARK):
                    self._answers.put(line.removeprefix(MARK))
        self._answers.put(None)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            # Its answer may come later, and would be taken for that to another question.
            self._process.kill()
            self._hangs = CheckoutError(
                f"{self.folder}: no answer within {timeout_s:g} s: its process hangs, or this "
                "machine needs a smaller --work"
            )
            raise self._hangs from None
        if line is None:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip()[-400:] or "it said nothing"
            raise CheckoutError(f"{self.folder}: its process ended with code {code}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer
