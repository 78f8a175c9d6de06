"""What was handed in: which student's, for which exercise, and the code without the notebook.

Names tell whose and which: of folders, files, and of the exercise in a notebook's Check panel.
Every file and folder that is there is answered for. Runs nothing of it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from widgets.grading.code import module_of

SUFFIXES = (".ipynb", ".py")
MOST_BYTES = 20 << 20
"""Of one file. A notebook full of figures has some megabytes."""
_CHECK = re.compile(r"Check\(\s*[\"']([^\"']+)[\"']")


@dataclass(frozen=True)
class Submission:
    """One file of one student, for one exercise."""

    student: str
    exercise: str
    """Name of the exercise, "45a_admission"; "" where none was found."""
    path: Path
    source: str = ""
    """The student's code, a Python module."""
    problem: str = ""
    """Why there is nothing to grade, in a sentence."""


def collect(root: Path, exercises: Sequence[str], chapters: Sequence[str] = ()) -> list[Submission]:
    """Everything handed in under `root`, by student and exercise.

    A file directly in `root` is named after its student; a folder in `root` belongs to the student
    of that name, with all files below it. `chapters` are names of notebooks, which a student's file
    may have beside the student's. Raises FileNotFoundError or NotADirectoryError for a `root` that
    is no folder, PermissionError for one that may not be read, and ValueError where it has neither
    notebooks nor Python files.
    """
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; expected the folder of what was handed in")
    entries = sorted(path for path in root.iterdir() if not _hidden(path))
    found, any_file = [], False
    for entry in entries:
        if not entry.is_dir():
            if _of_interest(entry):
                any_file = True
                found += list(
                    _read(_student(entry.stem, [*chapters, *exercises]), entry, exercises)
                )
            continue
        files, problem = _below(entry)
        any_file = any_file or bool(files)
        for path in files:
            found += list(_read(entry.name, path, exercises))
        if problem:
            found.append(Submission(entry.name, "", entry, problem=problem))
    if not any_file:
        raise ValueError(f"{root} has no notebooks (.ipynb) and no Python files (.py)")
    return sorted(found, key=lambda one: (one.student, one.exercise, str(one.path)))


def _of_interest(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _below(folder: Path) -> tuple[list[Path], str]:
    """A student's files, and what keeps there from being any more; "" where nothing does."""
    failed: list[OSError] = []
    files: list[Path] = []
    for at, folders, names in os.walk(folder, onerror=failed.append):
        folders[:] = [name for name in folders if not _hidden(Path(name))]
        found = (Path(at, name) for name in names)
        files += [path for path in found if _of_interest(path) and not _hidden(path)]
    if failed:
        return sorted(files), f"cannot be read: {failed[0]}"
    if not files:
        return [], "has no notebook (.ipynb) and no Python file (.py)"
    return sorted(files), ""


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))


def _read(student: str, path: Path, exercises: Sequence[str]) -> Iterator[Submission]:
    """One submission for each exercise of a file."""
    try:
        cells = _cells(path)
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        yield Submission(student, "", path, problem=f"cannot be read: {error}")
        return
    names = _exercises(path, cells, exercises)
    if not names:
        known = ", ".join(exercises)
        text = f"no exercise found; expected a notebook with one of the Check panels {known}"
        yield Submission(student, "", path, problem=text)
    for name in names:
        yield Submission(student, name, path, module_of(cells))


def _student(stem: str, titles: Sequence[str]) -> str:
    """The name of a file without the exercise or chapter: "alice" of "alice_45a_admission"."""
    named = [title for title in titles if title in stem]
    named += [title.partition("_")[0] for title in titles]
    for title in named:
        rest = re.sub(rf"(^|[^0-9a-zA-Z]){re.escape(title)}($|[^0-9a-zA-Z])", " ", stem).strip()
        if rest == stem:
            continue
        return rest or stem
    return stem


def _cells(path: Path) -> list[str]:
    """The code cells of a file. Raises OSError, ValueError for what is no notebook, SyntaxError
    for a Python file that is not in the encoding it names."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > MOST_BYTES:
        raise ValueError(f"the file has more than {MOST_BYTES >> 20} MB")
    if path.suffix.lower() == ".py":
        with tokenize.open(path) as file:
            return [file.read()]
    # Some editors of Windows begin a file with a byte order mark.
    notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("it is not a notebook (version 4)")
    found = []
    for cell in notebook["cells"]:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source", "")
            found.append("".join(map(str, source)) if isinstance(source, list) else str(source))
    return found


def _exercises(path: Path, cells: Sequence[str], known: Sequence[str]) -> list[str]:
    """The exercises that the panels of a file ask for; without one, what the file is called."""
    asked = [name for cell in cells for name in _CHECK.findall(cell) if name in known]
    if asked:
        return list(dict.fromkeys(asked))
    # "45a.py", "45a_admission.py", "alice_45a_admission.py"
    words = re.split(r"[^0-9a-zA-Z]+", path.stem)
    return [name for name in known if name in path.stem or name.partition("_")[0] in words]
