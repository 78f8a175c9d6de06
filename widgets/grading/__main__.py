"""`python -m widgets.grading DIR`: what `minserve lab grade DIR` runs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from minserve.cli import streams
from minserve.cli.grade import add_arguments
from minserve.cli.parser import Parser
from minserve.cli.streams import UsageError
from minserve.files.output_file import check_writable, write_text
from widgets.grading.grade import Grade, Limits, grade
from widgets.grading.submissions import Submission, collect
from widgets.notebooks.checkout import labs_directory
from widgets.panels.exercises.exercise import load_exercise

COLUMNS = ("student", "exercise", "status", "points", "out_of", "misconception", "file", "said")
MOST_SECONDS, MOST_MEMORY_MB = 1e6, 1 << 30
_PROG = "minserve lab grade"


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a folder. 0 when everything could be graded, 1 when a file could not or the result
    cannot be written, 2 for bad use, 130 when Ctrl-C ended it early, 141 when its output is no
    longer read."""
    parser = Parser(prog=_PROG)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        try:
            return _run(args)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        streams.say("\nminserve: interrupted")
        return 130
    except BrokenPipeError:
        streams.silence(sys.stdout, sys.stderr)
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        return streams.explain(error, _PROG)


def _run(args: argparse.Namespace) -> int:
    labs = labs_directory()
    known = sorted(path.stem for path in (labs / "exercises").glob("[0-9]*.py"))
    found = _collected(args, labs, known)
    worth = {name: 1.0 + (load_exercise(name, labs).score is not None) for name in known}
    limits = Limits(args.seconds, args.memory_mb << 20)
    each = grade(found, labs, seed=args.seed, limits=limits, out_of=worth.__getitem__)
    grades: list[Grade] = []
    with _once_interrupted():
        try:
            grades.extend(tqdm(each, "Grading", total=len(found), file=sys.stderr, disable=None))
        except KeyboardInterrupt:
            each.close()
        if args.csv:
            _write_csv(args.csv, grades)
        _print(grades, args.json, args.seed)
    if len(grades) < len(found):
        streams.say(f"minserve: interrupted; {len(grades)} of {len(found)} were graded")
        return 130
    return int(any(one.status == "not graded" for one in grades))


def _collected(args: argparse.Namespace, labs: Path, known: Sequence[str]) -> list[Submission]:
    """What is to be graded. Raises UsageError, and OutputError for a table that cannot be written,
    before anything is graded."""
    unknown = sorted(set(args.exercise) - set(known))
    if unknown:
        raise UsageError(f"there is no exercise {unknown[0]!r}; there are: {', '.join(known)}")
    if not 0 < args.seconds <= MOST_SECONDS or not 0 < args.memory_mb <= MOST_MEMORY_MB:
        raise UsageError(
            f"--seconds {args.seconds:g} --memory-mb {args.memory_mb}: both must be above 0, and "
            f"at most {MOST_SECONDS:g} and {MOST_MEMORY_MB}"
        )
    streams.check_stdout()
    if args.csv:
        check_writable(args.csv, "--csv")
    try:
        found = collect(args.directory, known, [path.stem for path in labs.glob("*.ipynb")])
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    if args.exercise:
        # A file that cannot be read may be one of them.
        found = [one for one in found if one.exercise in (*args.exercise, "")]
        if not any(one.exercise for one in found):
            raise UsageError(f"nothing in {args.directory} is for {' or '.join(args.exercise)}")
    return found


@contextmanager
def _once_interrupted() -> Iterator[None]:
    """While it is entered, the first Ctrl-C is a KeyboardInterrupt and further ones are nothing, so
    that what was graded until then is written in peace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print(grades: Sequence[Grade], as_json: bool, seed: int) -> None:
    if as_json:
        print(json.dumps({"seed": seed, "grades": [asdict(one) for one in grades]}, indent=1))
        return
    width = max((len(printable(one.student)) for one in grades), default=0)
    for one in grades:
        name = printable(one.exercise or Path(one.file).name)
        marks = f"{one.points:.2f} of {one.out_of:g}"
        print(f"{printable(one.student):<{width}}  {name:<18}  {one.status:<13}  {marks}")
        if one.status != "passed" and one.said:
            print(f"{'':<{width}}  {printable(one.said[0])}")
    print()
    for student in dict.fromkeys(one.student for one in grades):
        points, most = total(grades, student)
        print(f"{printable(student):<{width}}  {points:.2f} of {most:g} points")


def printable(text: str) -> str:
    """The text on one line, without what would steer a terminal or what stdout cannot take."""
    plain = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def total(grades: Sequence[Grade], student: str) -> tuple[float, float]:
    """A student's points and what they are out of: the best file counts for each exercise."""
    best: dict[str, Grade] = {}
    for one in grades:
        if one.student == student and one.exercise:
            held = best.get(one.exercise)
            if held is None or one.points > held.points:
                best[one.exercise] = one
    return sum(one.points for one in best.values()), sum(one.out_of for one in best.values())


def _write_csv(path: Path, grades: Sequence[Grade]) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    for one in grades:
        row = asdict(one) | {"said": " ".join(one.said)}
        writer.writerow({name: _plain(value) for name, value in row.items()})
    text = table.getvalue().encode("utf-8", "backslashreplace").decode()
    write_text(path, text, "--csv")


def _plain(value: object) -> object:
    """Text that a spreadsheet would take for a formula gets a quote before it."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky else value


if __name__ == "__main__":
    sys.exit(main())
