"""Give the reader their own copies of the chapters, and open JupyterLab on the first.

The chapters in `labs/` are stored with their outputs, for people who read them without running
anything. A reader who works through one should not see the answers first, and must never lose notes
to an update; so this script copies each chapter, without outputs, into `work/`, which git ignores:

- a copy that is not there yet is made;
- a copy that was never opened follows the chapter when the chapter changes;
- a copy that was opened or edited is left alone, and a line says that a newer chapter exists;
- `--reset 00` moves the reader's copy to `work/backups/` and makes a fresh one, whose questions are
  open again; the scores stay.

JupyterLab and its kernels are started with the engine's way of waiting for threads. Beyond that it
uses the standard library only and knows nothing about the engine or the chapters' contents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# What was copied, and from what: it tells an untouched copy from one the reader has opened.
RECORD = ".copied.json"


class LabError(Exception):
    """Something the reader can put right; its text is the sentence they are shown."""


@dataclass(frozen=True)
class Step:
    """What is to happen to one chapter's copy: `make`, `follow`, `reset`, `keep` or `newer`."""

    chapter: Path
    copy: Path
    action: str

    @property
    def writes(self) -> bool:
        return self.action in {"make", "follow", "reset"}


def chapters(labs: Path) -> list[Path]:
    """The chapters in reading order: `NN_name.ipynb`, the start chapter first."""
    return sorted(labs.glob("[0-9][0-9]*_*.ipynb"))


def cleared(text: str) -> str:
    """The notebook `text` without outputs, execution counts, timings and widget state."""
    notebook = json.loads(text)
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = []
            cell["execution_count"] = None
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(work: Path) -> dict[str, dict[str, str]]:
    path = work / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # Without a record every copy counts as the reader's own.
    return record if isinstance(record, dict) else {}


def plan(labs: Path, work: Path, reset: list[str]) -> list[Step]:
    """Decide what happens to each chapter; `reset` holds chapter numbers such as `00` or `45a`."""
    found = chapters(labs)
    if not found:
        raise LabError(f"There are no chapters in {labs}: is this a whole checkout?")
    numbers = [chapter.name.split("_")[0] for chapter in found]
    for number in reset:
        if number not in numbers:
            raise LabError(f"There is no chapter {number!r}; there are {', '.join(numbers)}.")

    record = read_record(work)
    steps = []
    for number, chapter in zip(numbers, found, strict=True):
        copy = work / chapter.name
        last = record.get(chapter.name, {})
        if not copy.exists():
            action = "make"
        elif number in reset:
            action = "reset"
        elif last.get("chapter") == digest(chapter):
            action = "keep"
        elif last.get("copy") == digest(copy):
            action = "follow"
        else:
            action = "newer"
        steps.append(Step(chapter, copy, action))
    return steps


def carry_out(steps: list[Step], work: Path) -> None:
    """Write the copies that `steps` ask for; nothing of the reader's is ever deleted."""
    work.mkdir(exist_ok=True)
    record = read_record(work)
    for step in steps:
        if not step.writes:
            continue
        fresh = cleared(step.chapter.read_text(encoding="utf-8"))
        if step.action == "reset":
            backups = work / "backups"
            backups.mkdir(exist_ok=True)
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
            step.copy.rename(backups / f"{step.copy.stem}.{stamp}.ipynb")
        step.copy.write_text(fresh, encoding="utf-8")
        record[step.chapter.name] = {"chapter": digest(step.chapter), "copy": digest(step.copy)}
    (work / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def forget(work: Path, numbers: list[str]) -> None:
    """Open the questions of these chapters again: a fresh copy should not show old answers."""
    scores = work / "progress.json"
    if numbers and scores.exists():
        from widgets.progress import Progress  # Not needed to copy chapters.

        for number in numbers:
            Progress(scores).forget(number)


def report(steps: list[Step], checkout: Path) -> list[str]:
    """The lines that tell the reader what happened; chapters left as they were are not listed."""
    sentence = {
        "make": "{copy}: your copy of the chapter",
        "follow": "{copy}: updated; you had not opened it yet",
        "reset": "{copy}: fresh; the one you had is in work/backups/",
        "newer": "{copy}: yours, and left alone; the chapter has changed since "
        "(make reset CHAPTER={number} takes the new one and keeps yours as a backup)",
    }
    return [
        sentence[step.action].format(
            copy=step.copy.relative_to(checkout).as_posix(),
            number=step.chapter.name.split("_")[0],
        )
        for step in steps
        if step.action in sentence
    ]


def jupyter_command(checkout: Path, start: Path, browser: bool, extra: list[str]) -> list[str]:
    """JupyterLab with the whole checkout at hand and the notebook `start` open."""
    page = start.relative_to(checkout).as_posix()
    command = [sys.executable, "-m", "jupyter", "lab"]
    command += [f"--ServerApp.root_dir={checkout}", f"--LabApp.default_url=/lab/tree/{page}"]
    if not browser:
        command.append("--no-browser")
    return command + extra


def launch(command: list[str]) -> int:
    """Run `command` until the reader stops it."""
    environment = kernel_environment()
    if os.name == "posix":
        os.execve(command[0], command, environment)  # JupyterLab itself answers to Ctrl-C.
    return subprocess.call(command, env=environment)


def kernel_environment() -> dict[str, str]:
    """What JupyterLab hands on to every kernel: a chapter may import torch before `minserve`."""
    from minserve.process.openmp import set_spin_count  # Not needed to copy chapters.

    environment = dict(os.environ)
    set_spin_count(environment)
    return environment


def main(argv: list[str] | None = None, checkout: Path = CHECKOUT) -> int:
    parser = argparse.ArgumentParser(
        prog="open_lab.py", description="Copy the chapters to work/ and open JupyterLab there."
    )
    parser.add_argument(
        "--reset",
        metavar="NN",
        action="append",
        default=[],
        help="take a fresh copy of chapter NN; the one you have moves to work/backups/",
    )
    parser.add_argument("--copy-only", action="store_true", help="copy, and open nothing")
    parser.add_argument("--no-browser", action="store_true", help="start JupyterLab, print its URL")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would happen, and do nothing"
    )
    parser.add_argument(
        "jupyter", nargs="*", metavar="-- ARG", help="arguments passed on to JupyterLab"
    )
    options = parser.parse_args(argv)

    work = checkout / "work"
    try:
        steps = plan(checkout / "labs", work, options.reset)
        if not options.dry_run:
            carry_out(steps, work)
            forget(work, options.reset)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    for line in report(steps, checkout):
        print(line, flush=True)

    command = jupyter_command(checkout, steps[0].copy, not options.no_browser, options.jupyter)
    if options.dry_run:
        print(shlex.join(command))
        return 0
    if options.copy_only:
        return 0
    return launch(command)


if __name__ == "__main__":
    sys.exit(main())
