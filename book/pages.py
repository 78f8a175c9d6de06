"""A chapter of the lab as a page of the book: the same text and code, with what was recorded.

Code is folded where the lab folds it. The static images that chapters carry for readers without a
kernel give way to the figures themselves. Knows nothing about how a page is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import nbformat

from book.fragments import fragment, text_of
from book.records import Record, cell_keys, chapters
from book.terms import linked

_NO_KERNEL = re.compile(r"<details><summary>[^<]*</summary>(?:<img [^>]*>)+</details>")
_IMAGE = re.compile(r'<img src="\.\./labs/figures/([^"]+)\.svg"')
_LINK = re.compile(r"\[([^\]]+)\]\(([^)/]+\.ipynb)\)")
_TO_BEGIN = re.compile(r"^\*\*(?:To begin|How to use a chapter)\*\*(?:.|\n(?!\n))*", re.MULTILINE)
"""What tells a reader to run all cells: a page has no menu for that."""
IN_THE_BOOK = "**To begin** Decide before you unfold an answer, and drag the slider under a figure."
_PLUMBING = "raise_panel_errors"


def page(notebook: Any, record: Record, *, solutions: bool = True) -> Any:
    """The notebook that Sphinx reads. `record` is of the same chapter."""
    made = nbformat.v4.new_notebook(metadata={"kernelspec": notebook.metadata.kernelspec})
    # A figure that stands on the page already is not shown once more where its image was.
    shown = {
        piece["name"]
        for pieces in record.cells.values()
        for piece in pieces
        if piece["kind"] == "named"
    }
    for key, cell in zip(cell_keys(notebook), notebook.cells, strict=True):
        if cell.cell_type == "markdown":
            made.cells += _prose(cell.source, record, shown)
        elif not key.partition(": ")[2].startswith(_PLUMBING):
            made.cells.append(_code(cell, key, record, solutions=solutions))
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number:03}"
    return made


def missing(notebook: Any, record: Record) -> list[str]:
    """The cells whose outputs the record lacks, by their last statement."""
    pairs = zip(cell_keys(notebook), notebook.cells, strict=True)
    return [key for key, cell in pairs if key not in record.cells and cell.get("outputs")]


def _prose(source: str, record: Record, shown: set[str]) -> Iterator[Any]:
    """Text, and between its parts the figures whose images stood there."""
    at = 0
    for match in _NO_KERNEL.finditer(source):
        names = [name for name in _IMAGE.findall(match[0]) if name not in shown]
        yield from _text(source[at : match.start()])
        for name in names:
            if name in record.named:
                yield _html_cell([fragment({"kind": "named", "name": name}, record)])
        at = match.end()
    yield from _text(source[at:])


def _text(source: str) -> Iterator[Any]:
    if source.strip():
        pages = {path.name for path in chapters()}
        # A notebook that needs a kernel is no page: its name stands there without a link.
        text = _LINK.sub(
            lambda link: link[0] if link[2] in pages else f"{link[1]} (in the lab)",
            _TO_BEGIN.sub(IN_THE_BOOK, source),
        )
        yield nbformat.v4.new_markdown_cell(linked(text.strip("\n")))


def _code(cell: Any, key: str, record: Record, *, solutions: bool) -> Any:
    tags = ["hide-input"] if cell.metadata.get("jupyter", {}).get("source_hidden") else []
    outputs = []
    for piece in record.cells.get(key, ()):
        html = fragment(piece, record, solutions=solutions)
        outputs.append(_html(html) if html else text_of(piece))
    if key not in record.cells:
        outputs = [_as_text(output) for output in cell.get("outputs", ())]
    made = nbformat.v4.new_code_cell(cell.source, metadata={"tags": tags})
    made.outputs = [nbformat.from_dict(output) for output in outputs]
    return made


def _html_cell(parts: list[str]) -> Any:
    made = nbformat.v4.new_code_cell("", metadata={"tags": ["remove-input"]})
    made.outputs = [nbformat.from_dict(_html(part)) for part in parts]
    return made


def _html(html: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"text/html": html}, "metadata": {}}


def _as_text(output: Any) -> dict[str, Any]:
    """A stored output in words, where nothing was recorded."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return text_of({"text": text})
