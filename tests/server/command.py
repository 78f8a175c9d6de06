"""`minserve serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from server.conftest import MODEL

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def served(*flags):
    """Gives the process, once it answers, and its address."""
    command = [sys.executable, "-m", "minserve", "serve", MODEL, "--port", "0", "--dtype",
               "float32", "--drain-s", "60", *flags]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            for line in process.stderr:
                if " at http://" in line:
                    yield process, line.split(" at ")[1].split("/v1")[0]
                    return
            raise AssertionError("the server did not start")
        finally:
            process.kill()
