"""What was recorded of a chapter: a run's pieces, cell by cell, in one compressed file.

A cell is found by the statement that ends it, which says what is displayed. So a chapter may be
edited elsewhere without losing its figures; `Record.of_older_chapter` says that it was.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LABS = ROOT / "labs"
RECORDED = Path(__file__).resolve().parent / "recorded"
Piece = dict[str, Any]
"""Something to show; `kind` says what: figure, named (a signature figure), panel, html, text,
predict, estimate, recap, exercise, lab only."""


@dataclass(frozen=True)
class Record:
    """One chapter's run."""

    chapter: str
    """The notebook's name without its ending."""
    date: str
    digest: str
    """Of the code that ran."""
    cells: dict[str, list[Piece]] = field(default_factory=dict)
    """What `cell_keys` says of a cell -> its pieces."""
    named: dict[str, Piece] = field(default_factory=dict)
    """The signature figures, as the notebook's metadata names them."""
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Key of a question -> what the run says to it, in words."""

    def of_older_chapter(self, notebook: Any) -> bool:
        """True if the chapter's code is no longer what ran."""
        return digest(notebook) != self.digest

    def save(self, folder: Path = RECORDED) -> Path:
        """Write `folder/CHAPTER.json.gz`, the same bytes for the same record."""
        path = folder / f"{self.chapter}.json.gz"
        text = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))
        # All of it or nothing: a recording that is interrupted here must not damage the last one.
        half = path.with_suffix(".half")
        half.write_bytes(gzip.compress(text.encode(), mtime=0))
        half.replace(path)
        return path


class RecordError(Exception):
    """A chapter's record is missing or damaged; says how to make it."""


def load(chapter: str, folder: Path = RECORDED) -> Record:
    """The record of a chapter. Raises RecordError where there is none, or none that can be read."""
    path, again = folder / f"{chapter}.json.gz", f".venv/bin/python -m book.record {chapter}"
    if not path.is_file():
        raise RecordError(f"labs/{chapter}.ipynb has not been recorded for the book: {again}")
    try:
        return Record(**json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise RecordError(
            f"{path.name} cannot be read ({error}); to record the chapter again: {again}"
        ) from error


def digest(notebook: Any) -> str:
    """Changes with any line of a chapter's code."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def cell_keys(notebook: Any) -> list[str]:
    """For each cell its last statement, numbered where others end alike; "" for prose."""
    seen: Counter[str] = Counter()
    keys = []
    for cell in notebook.cells:
        key = ""
        if cell.cell_type == "code":
            ending = _last_statement(cell.source)
            seen[ending] += 1
            key = f"{seen[ending]}: {ending}"
        keys.append(key)
    return keys


def _last_statement(source: str) -> str:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return source.strip()
    return ast.unparse(body[-1]) if body else ""


def chapters(labs: Path = LABS) -> list[Path]:
    """The chapters, in order: the notebooks with questions. The playground needs a kernel."""
    found = sorted(labs.glob("[0-9][0-9]*_*.ipynb"))
    asked = {path.stem for path in (labs / "questions").glob("*.toml")}
    return [path for path in found if path.name.partition("_")[0] in asked]
