"""Chapters in tests: run the cells that carry a tag, headless, and look at what they define."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

LABS = Path(__file__).resolve().parents[2] / "labs"


def run_cells(chapter: str, *tags: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The names that the chapter's cells with one of these tags define, run in order; `names` are
    there before."""
    notebook = nbformat.read(LABS / f"{chapter}.ipynb", as_version=4)
    names = {} if names is None else names
    for cell in notebook.cells:
        if cell.cell_type == "code" and set(tags) & set(cell.metadata.get("tags", ())):
            exec(compile(cell.source, f"{chapter}.ipynb, {cell.id}", "exec"), names)
    return names
