"""Run chapters headless and keep what the book shows: `python -m book.record [CHAPTER ...]`.

Each chapter runs as `labs/tools/store.py` runs it, with `capture` installed before its first cell.
Everything on a page of the book so comes from one run: its figures, verdicts and printed numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellControlSignal, DeadKernelError

from book.records import LABS, ROOT, Piece, Record, cell_keys, chapters, digest

sys.path.insert(0, str(LABS / "tools"))
from store import execute

MIME = "application/vnd.minserve.book+json"
_BEFORE = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from book import capture
capture.install()"""
_AFTER = "capture.finish({{{figures}}}, {{{states}}})"


def record(path: Path) -> Record:
    """Run one chapter. Raises CellControlSignal where a cell fails or takes too long, and
    DeadKernelError."""
    notebook = nbformat.read(path, as_version=4)
    keys, code = cell_keys(notebook), digest(notebook)
    ran = nbformat.from_dict(notebook)
    ran.cells = [
        nbformat.v4.new_code_cell(_BEFORE),
        *ran.cells,
        nbformat.v4.new_code_cell(_after(notebook)),
    ]
    execute(ran, path.parent)
    *cells, last = ran.cells[1:]
    found = {
        key: pieces
        for key, cell in zip(keys, cells, strict=True)
        if cell.cell_type == "code" and (pieces := list(_pieces(cell)))
    }
    answers, *signature = _pieces(last)
    figures = {piece["name"]: piece for piece in signature}
    found = {key: [_by_name(piece, figures) for piece in pieces] for key, pieces in found.items()}
    return Record(path.stem, time.strftime("%Y-%m-%d"), code, found, figures, answers["found"])


def _busy() -> str:
    """A word of warning where others were computing too: times were measured."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < cores + 1:
        return ""
    return f"; the machine was busy (load {load:.1f}): record it again when it is quiet"


def _by_name(piece: Piece, figures: Mapping[str, Piece]) -> Piece:
    """A signature figure by its name, wherever it is displayed: it is kept once."""
    same = (name for name, each in figures.items() if each["plot"] == piece.get("plot"))
    name = next(same, None)
    return piece if name is None else {"kind": "named", "name": name}


def _after(notebook: Any) -> str:
    """The last cell: answers, and the signature figures that the notebook's metadata names."""
    figures = notebook.metadata.get("minserve", {}).get("figures", {})
    moving = tomllib.loads((ROOT / "book/moving.toml").read_text(encoding="utf-8"))
    states = {name: moving[name] for name in figures if name in moving}
    return _AFTER.format(
        figures=", ".join(f"{name!r}: {expression}" for name, expression in figures.items()),
        states=", ".join(f"{name!r}: {expression}" for name, expression in states.items()),
    )


def _pieces(cell: Any) -> Iterator[Piece]:
    """A cell's outputs, as the book shows them."""
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            yield {"kind": "text", "text": output.text}
        elif MIME in data:
            yield data[MIME]
        elif "text/html" in data:
            yield {"kind": "html", "html": data["text/html"]}
        elif "text/plain" in data:
            yield {"kind": "text", "text": data["text/plain"]}


def _means(name: str, chapter: Path) -> bool:
    """A chapter by its number, its name, or the path of its notebook."""
    asked = Path(name).name.removesuffix(".ipynb")
    return asked in (chapter.stem, chapter.stem.partition("_")[0])


def main(argv: list[str] | None = None) -> int:
    """Record chapters, all of them by default; 1 where one does not run to its end."""
    parser = argparse.ArgumentParser(
        prog="book.record", description="Run chapters and keep what the book shows of them."
    )
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="45b, or a name; default: all"
    )
    wanted = parser.parse_args(argv).chapters
    for name in wanted:
        if not any(_means(name, path) for path in chapters()):
            parser.error(f"no chapter {name!r}: {', '.join(path.stem for path in chapters())}")
    for path in chapters():
        if wanted and not any(_means(name, path) for name in wanted):
            continue
        start = time.perf_counter()
        try:
            saved = record(path).save()
        except (CellControlSignal, DeadKernelError) as error:
            print(f"{path.name}: not recorded\n{str(error)[-1500:]}", file=sys.stderr)
            return 1
        took = time.perf_counter() - start
        print(
            f"{path.name}: {took:.0f} s, {saved.stat().st_size / 1e3:.0f} kB{_busy()}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
