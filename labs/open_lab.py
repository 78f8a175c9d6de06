"""Give the reader their own copies of the chapters, and open JupyterLab on the first.

The chapters in `labs/` are stored with their outputs, for people who read them without running
anything. A reader who works through one should not see the answers first, and must never lose notes
to an update; so this script copies each chapter, without outputs, into `work/`, which git ignores:

- a copy that is not there yet is made;
- a copy that was never opened follows the chapter when the chapter changes;
- a copy that was opened or edited is left alone, and a line says that a newer chapter exists;
- `--reset 00` moves the reader's copy to `work/backups/` and makes a fresh one, whose questions are
  open again; the scores stay.

`--work DIR` or MINSERVE_WORK keeps the copies in `DIR/work/`, beside a link to `labs/`. Where the
checkout cannot be written to, that is in the reader's home, and what they had is copied there.

JupyterLab and its kernels are started with the engine's way of waiting for threads. Beyond that it
uses the standard library only and knows nothing about the engine or the chapters' contents.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# What was copied, and from what: it tells an untouched copy from one the reader has opened.
RECORD = ".copied.json"
CHOOSE = "make lab WORK=DIR, or MINSERVE_WORK=DIR in the environment, keeps your copies in DIR/work"


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


@dataclass(frozen=True)
class Place:
    """The folder that JupyterLab shows, with the reader's copies in its `work/`."""

    root: Path
    words: str = ""
    """What to tell the reader about it."""
    adopts: Path | None = None
    """A folder of copies that can no longer be written, and are to be copied here."""

    @property
    def work(self) -> Path:
        return self.root / "work"


def find_place(checkout: Path, chosen: str | None) -> Place:
    """The folder that was chosen, or the checkout, or a folder in the reader's home."""
    if chosen:
        return Place(Path(chosen).expanduser().absolute())
    own, home = checkout / "work", Path.home() / "minserve-lab"
    if not is_writable(own):
        words = f"{own} cannot be written to, so your copies are in {home / 'work'}. {CHOOSE}."
        return Place(home, words, adopts=own)
    if (home / "work" / RECORD).exists():
        words = (
            f"There are copies in {home / 'work'} too, from when a checkout could not be written "
            f"to; make lab WORK={home} opens those."
        )
        return Place(checkout, words)
    return Place(checkout)


def is_writable(folder: Path) -> bool:
    """True where files can be made in `folder`, or the folder itself."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def explained(work: Path) -> Iterator[None]:
    """A LabError in place of what the system says about files in `work`."""
    try:
        yield
    except OSError as error:
        closed = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        advice = f"{CHOOSE} that can be." if closed else "Nothing of yours was changed or deleted."
        what = error.filename or work
        raise LabError(f"{what} cannot be written: {error.strerror or error}. {advice}") from error


def adopt(own: Path, work: Path) -> list[Path]:
    """Copy to `work` what the reader has in `own` and not there; the new files."""
    me = os.geteuid() if hasattr(os, "geteuid") else None
    found = []
    for path in sorted(own.rglob("*")):
        target = work / path.relative_to(own)
        wanted = path.is_file() and path.suffix != ".lock" and path.parent.name[:1] != "."
        # A checkout that many share may hold its owner's copies, answers included.
        if wanted and me in (None, path.stat().st_uid) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target, path.read_bytes())
            found.append(target)
    return found


def write(path: Path, data: bytes) -> None:
    """Write a file whole: a full disk leaves the old one as it was."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def link_labs(labs: Path, root: Path) -> None:
    """Put `labs/` beside the copies' folder: chapters look there for figures and questions."""
    link = root / "labs"
    if link.is_symlink() and link.resolve() != labs.resolve():
        link.unlink()  # It led to a checkout that has moved.
    if os.path.lexists(link):
        return
    try:
        link.symlink_to(labs, target_is_directory=True)
    except (OSError, NotImplementedError):  # Windows asks for a privilege.
        shutil.copytree(labs, link)


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
    work.mkdir(parents=True, exist_ok=True)
    record = read_record(work)
    for step in steps:
        if not step.writes:
            continue
        fresh = cleared(step.chapter.read_text(encoding="utf-8"))
        if step.action == "reset":
            backups = work / "backups"
            backups.mkdir(exist_ok=True)
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
            # Copied, not moved: should the fresh one not fit on the disk, theirs is still there.
            shutil.copy2(step.copy, backups / f"{step.copy.stem}.{stamp}.ipynb")
        write(step.copy, fresh.encode())
        record[step.chapter.name] = {"chapter": digest(step.chapter), "copy": digest(step.copy)}
    write(work / RECORD, json.dumps(record, indent=1).encode())


def forget(work: Path, numbers: list[str]) -> None:
    """Open the questions of these chapters again: a fresh copy should not show old answers."""
    scores = work / "progress.json"
    if numbers and scores.exists():
        from widgets.scoring.progress import Progress  # Not needed to copy chapters.

        for number in numbers:
            Progress(scores).forget(number)


def report(steps: list[Step], root: Path, checkout: Path) -> list[str]:
    """The lines that tell the reader what happened; chapters left as they were are not listed."""
    where = "work" if root == checkout else (root / "work").as_posix()
    again = "" if root == checkout else f" WORK={shlex.quote(str(root))}"
    sentence = {
        "make": "{copy}: your copy of the chapter",
        "follow": "{copy}: updated; you had not opened it yet",
        "reset": "{copy}: fresh; the one you had is in {where}/backups/",
        "newer": "{copy}: yours, and left alone; the chapter has changed since "
        "(make reset CHAPTER={number}{again} takes the new one and keeps yours as a backup)",
    }
    return [
        sentence[step.action].format(
            copy=f"{where}/{step.copy.name}",
            number=step.chapter.name.split("_")[0],
            where=where,
            again=again,
        )
        for step in steps
        if step.action in sentence
    ]


def jupyter_command(root: Path, start: Path, browser: bool, extra: list[str]) -> list[str]:
    """JupyterLab with everything in `root` at hand and the notebook `start` open."""
    page = start.relative_to(root).as_posix()
    command = [sys.executable, "-m", "jupyter", "lab"]
    command += [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{page}"]
    # A saved notebook keeps the panels' words, not addresses in a kernel that has ended.
    command.append("--ServerApp.jpserver_extensions=widgets.notebooks.saving=True")
    if not browser:
        command.append("--no-browser")
    return command + extra


def launch(command: list[str], work: Path) -> int:
    """Run `command` until the reader stops it."""
    environment = kernel_environment()
    # The scores lie beside the copies, wherever those are.
    environment.setdefault("MINSERVE_PROGRESS", str(work / "progress.json"))
    if os.name == "posix":
        os.execve(command[0], command, environment)  # JupyterLab itself answers to Ctrl-C.
    return subprocess.call(command, env=environment)


def kernel_environment() -> dict[str, str]:
    """What JupyterLab hands on to every kernel: a chapter may import torch before `minserve`."""
    from minserve.process.openmp import set_spin_count  # Not needed to copy chapters.

    environment = dict(os.environ)
    set_spin_count(environment)
    environment.setdefault("PYTHONSTARTUP", str(CHECKOUT / "labs" / "tools" / "startup.py"))
    return environment


def prepare(checkout: Path, place: Place, reset: list[str]) -> list[Step]:
    """Make the copies. Raises LabError."""
    with explained(place.work):
        if place.adopts is not None:
            for path in adopt(place.adopts, place.work):
                print(f"{path}: copied from {place.adopts}", flush=True)
        steps = plan(checkout / "labs", place.work, reset)
        carry_out(steps, place.work)
        if place.root != checkout:
            link_labs(checkout / "labs", place.root)
        forget(place.work, reset)
    return steps


def main(argv: list[str] | None = None, checkout: Path = CHECKOUT) -> int:
    options = arguments().parse_args(argv)
    try:
        place = find_place(checkout, options.work or os.environ.get("MINSERVE_WORK"))
        if place.words:
            print(place.words, flush=True)
        if options.dry_run:
            steps = plan(checkout / "labs", place.work, options.reset)
        else:
            steps = prepare(checkout, place, options.reset)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    for line in report(steps, place.root, checkout):
        print(line, flush=True)

    command = jupyter_command(place.root, steps[0].copy, not options.no_browser, options.jupyter)
    if options.dry_run:
        print(shlex.join(command))
    return 0 if options.dry_run or options.copy_only else launch(command, place.work)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="open_lab.py", description="Copy the chapters to work/ and open JupyterLab there."
    )
    parser.add_argument(
        "--reset", metavar="NN", action="append", default=[],
        help="take a fresh copy of chapter NN; the one you have moves to work/backups/",
    )  # fmt: skip
    parser.add_argument("--work", metavar="DIRECTORY", help="keep the copies in DIRECTORY/work")
    parser.add_argument("--copy-only", action="store_true", help="copy, and open nothing")
    parser.add_argument("--no-browser", action="store_true", help="start JupyterLab, print its URL")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    parser.add_argument(
        "jupyter", nargs="*", metavar="-- ARG", help="arguments passed on to JupyterLab"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
