"""`minserve lab grade DIR`: grade a class's exercises.

The engine never imports the lab: the arguments are declared here, and `python -m widgets.grading`
is started with them.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

DESCRIPTION = (
    "Grade exercises: each solution runs in a process of its own, with limits of time and memory. "
    "This is no sandbox: it protects against accidents, not against intent. Grade the work of "
    "strangers in a container or a virtual machine."
)
SECONDS = 120.0
MEMORY_MB = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = DESCRIPTION
    parser.add_argument("directory", type=Path, metavar="DIR",
                        help="what was handed in: a folder or a file per student")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0,
                        help="draws the randomised cases, which are not those of the notebooks "
                        "(default: 0)")  # fmt: skip
    parser.add_argument("--exercise", action="append", default=[], metavar="NAME",
                        help="grade only this one, such as 45a_admission; repeatable")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help="time limit for one solution (default: %(default)g)")  # fmt: skip
    parser.add_argument("--memory-mb", type=int, default=MEMORY_MB,
                        help="memory for one solution beyond the lab's own, on Linux (default: "
                        "%(default)s)")  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table too")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")


def run(args: argparse.Namespace) -> int:
    """Start the grader, and end as it ended."""
    if importlib.util.find_spec("widgets") is None:
        print("minserve lab grade: the lab is not installed here; install minserve[lab]",
              file=sys.stderr)  # fmt: skip
        return 1
    command = [sys.executable, "-m", "widgets.grading", *_again(args)]
    with subprocess.Popen(command) as grader:
        while True:
            try:
                code = grader.wait()
            except KeyboardInterrupt:
                # It reports what it has, which takes a moment. Where Ctrl-C reached it too, it
                # takes no notice of this one.
                grader.send_signal(signal.SIGINT)
            else:
                return code if code >= 0 else 128 - code


def _again(args: argparse.Namespace) -> list[str]:
    """The arguments as they were given, with what was left out."""
    found = [f"--seed={args.seed}", f"--seconds={args.seconds}", f"--memory-mb={args.memory_mb}"]
    found += [f"--exercise={name}" for name in args.exercise]
    if args.csv is not None:
        found.append(f"--csv={args.csv}")
    if args.json:
        found.append("--json")
    return [*found, "--", str(args.directory)]
