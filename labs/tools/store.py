"""Run chapters from a fresh kernel and store them as git keeps them: `store.py labs/00_*.ipynb`.

How to write a chapter: edit its notebook in JupyterLab (in `labs/`, not in `work/`), then run this.
It executes the notebook headless, joins pieces of printed text, folds long code that is not tagged
`shown`, leaves out widget state, timings and everything else that changes without meaning, and says
how long each slow cell took. Nothing is written when a cell fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SLOW_S = 2.0
KEPT_METADATA = ("kernelspec", "minserve")
KEPT_CELL_METADATA = ("tags", "jupyter")
"""`jupyter.source_hidden` folds a cell whose code gives an answer away, or is plumbing."""
MAX_SHOWN_LINES = 12
"""Longer code is folded, unless it is tagged `shown`: the chapter is about it."""


def execute(notebook: Any, folder: Path, timeout_s: int = 600) -> dict[int, float]:
    """Run all cells in place, headless and with the scores kept elsewhere; seconds by cell.

    Raises CellExecutionError for the first cell that fails.
    """
    started: dict[int, float] = {}
    seconds: dict[int, float] = {}

    def begin(cell: Any, cell_index: int) -> None:
        started[cell_index] = time.perf_counter()

    def end(cell: Any, cell_index: int, execute_reply: Any) -> None:
        seconds[cell_index] = time.perf_counter() - started[cell_index]

    with tempfile.TemporaryDirectory() as scores:
        environment = os.environ | {
            "MINSERVE_HEADLESS": "1",
            "MINSERVE_PROGRESS": str(Path(scores) / "progress.json"),
            "HF_HUB_OFFLINE": "1",
        }
        client = NotebookClient(
            notebook,
            timeout=timeout_s,
            resources={"metadata": {"path": str(folder)}},
            coalesce_streams=True,
            store_widget_state=False,
            on_cell_start=begin,
            on_cell_executed=end,
        )
        client.execute(env=environment)
    return seconds


def tidied(notebook: Any) -> Any:
    """The notebook without what changes from run to run and means nothing."""
    metadata = {key: notebook.metadata[key] for key in KEPT_METADATA if key in notebook.metadata}
    metadata["language_info"] = {"name": "python", "file_extension": ".py"}
    notebook.metadata = nbformat.from_dict(metadata)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        kept = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        if folds(cell):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def folds(cell: Any) -> bool:
    """True for code that is longer than a reader wants to scroll past."""
    lines = len(cell.source.splitlines())
    long = cell.cell_type == "code" and lines > MAX_SHOWN_LINES
    return long and "shown" not in cell.metadata.get("tags", ())


def store(path: Path) -> Mapping[int, float]:
    """Execute and rewrite one chapter; seconds by cell."""
    notebook = nbformat.read(path, as_version=4)
    seconds = execute(notebook, path.parent)
    text = nbformat.writes(tidied(notebook), ensure_ascii=False)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="store.py", description="Run chapters headless and store them with their outputs."
    )
    parser.add_argument("chapters", nargs="+", type=Path, metavar="CHAPTER")
    for path in parser.parse_args(argv).chapters:
        start = time.perf_counter()
        try:
            seconds = store(path)
        except CellExecutionError as error:
            print(f"{path.name}: not stored, a cell failed\n{error}", file=sys.stderr)
            return 1
        slow = ", ".join(f"cell {n} {s:.1f} s" for n, s in seconds.items() if s >= SLOW_S)
        size_kb = path.stat().st_size / 1e3
        print(f"{path.name}: {time.perf_counter() - start:.1f} s, {size_kb:.0f} kB; {slow}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
