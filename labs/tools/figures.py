"""Export the chapters' signature figures as SVG, for readers without a kernel: `make figures`.

A chapter names its figures in the notebook's metadata, as expressions over its own variables:
`"minserve": {"figures": {"00_typewriters": "typewriters(race.result.traces, llm.tokenizer)"}}`.
The chapter is run headless in a fresh kernel, then the expressions, and each figure is written to
`labs/figures/NAME.svg` with its takeaway, caption and alternative text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import plotly.graph_objects as go
from nbclient.exceptions import CellExecutionError
from store import execute

from widgets.figures import render

LABS = Path(__file__).resolve().parent.parent

_EXPORT = """
from widgets.figures.export import export_svg

export_svg({{{}}}, {!r})
None
"""


def declared(path: Path) -> Mapping[str, str]:
    """Name -> expression of a chapter's signature figures."""
    notebook = nbformat.read(path, as_version=4)
    figures: Mapping[str, str] = notebook.metadata.get("minserve", {}).get("figures", {})
    return figures


def export(path: Path, folder: Path) -> list[Path]:
    """Run one chapter and write its figures. Raises CellExecutionError where something fails."""
    figures = declared(path)
    if not figures:
        return []
    names = ", ".join(f"{name!r}: {expression}" for name, expression in figures.items())
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(_EXPORT.format(names, str(folder))))
    execute(notebook, path.parent)
    return [folder / f"{name}.svg" for name in figures]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="figures.py", description="Export the chapters' signature figures as SVG."
    )
    parser.add_argument("chapters", nargs="*", type=Path, metavar="CHAPTER", help="default: all")
    parser.add_argument("--out", type=Path, default=LABS / "figures", metavar="DIRECTORY")
    options = parser.parse_args(argv)
    try:
        # Before the chapters run, which takes minutes.
        render.svg(go.Figure(), "", "", "", width=100)
    except RuntimeError as error:
        print(f"No figure was exported. {error}.", file=sys.stderr)
        return 1
    for path in options.chapters or sorted(LABS.glob("[0-9][0-9]*_*.ipynb")):
        try:
            written = export(path, options.out.resolve())
        except CellExecutionError as error:
            print(f"{path.name}: no figure was exported, a cell failed\n{error}", file=sys.stderr)
            return 1
        for target in written:
            print(f"{path.name}: {target.name}, {target.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
