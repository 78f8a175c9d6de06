"""A name that no cell has made yet: say which cell makes it, in place of a bare NameError.

A chapter's cells build on each other, and a reader who starts in the middle, or whose kernel was
restarted, sees "name 'compare' is not defined". The sentence after it names the cell to run first.
Reads the notebook's file where the front end says which one it is; asks for all cells above
otherwise.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

_ALL_ABOVE = "Run the cells above first: Run, then “Run All Above Selected Cell”."
_HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
_MOST_BYTES = 50 << 20
_RUNS_CELL = re.compile(r"\A\s*%%(time|capture|prun)\b.*")
"""Magics that run their cell as Python, in the notebook itself."""


def install(shell: Any) -> None:
    """Explain NameErrors in this shell. Another handler that is there stays."""
    if getattr(shell, "custom_exceptions", ()) == ():
        shell.set_custom_exc((NameError,), _told)


def install_here() -> None:
    """Explain them in the notebook that runs this, if one does."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None:
            install(shell)


def _told(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> None:
    """Show the error as always, and the sentence below it."""
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    text = advice(error, notebook_path(shell))
    if text:
        from IPython.display import display

        display({"text/plain": text}, raw=True)


def advice(error: BaseException, path: Path | None) -> str:
    """The sentence for an error; "" where no cell would help.

    A name that the notebook makes nowhere is a slip of the reader's, and Python's own words do.
    """
    # A local variable that has no value yet is no matter of cells, nor is an error of another kind.
    name = error.name if type(error) is NameError else None
    if not isinstance(name, str) or not name:
        return ""
    cells = _cells(path)
    if not cells:
        return _ALL_ABOVE
    found = next(_makers(name, cells), None)
    if found is None:
        return ""
    heading, first_line = found
    where = f" under “{heading}”" if heading else ""
    return (
        f"`{name}` is made by the cell{where} that begins with `{first_line}`. Run it first; "
        "it may need those above it: Run, then “Run All Above Selected Cell”."
    )


def notebook_path(shell: Any) -> Path | None:
    """The file of the notebook that runs, as far as the front end tells."""
    told = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    if not isinstance(told, str) or not told.endswith(".ipynb"):
        return None
    for path in (told, os.path.basename(told)):
        if os.path.isfile(path):  # unlike Path.is_file, False for a name that no file can have
            return Path(path).absolute()
    return None


def _cells(path: Path | None) -> Sequence[tuple[str, str]]:
    """Kind and source of every cell; nothing where the file cannot be read."""
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return ()
        cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        return [(str(cell["cell_type"]), "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _makers(name: str, cells: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The cells that make a name: the heading above each, and its first line."""
    heading = ""
    for kind, source in cells:
        if kind == "markdown":
            heading = (_HEADING.findall(source) or [heading])[-1]
        elif kind == "code" and name in made(source):
            yield heading, next(line.strip() for line in source.splitlines() if line.strip())


def made(source: str) -> set[str]:
    """The names that a cell defines, imports or assigns at its top level."""
    found = parsed(source)
    return set() if found is None else {name for node in found[0].body for name in _made_by(node)}


def parsed(source: str) -> tuple[ast.Module, list[str]] | None:
    """A cell as Python, with its lines; None for what is none, nor with IPython's own lines."""
    text = source.replace("\r\n", "\n").replace("\r", "\n")
    text = _RUNS_CELL.sub("", text, count=1)
    errors = (SyntaxError, ValueError, RecursionError, MemoryError)
    with suppress(*errors):
        return ast.parse(text), text.split("\n")
    if text.lstrip().startswith("%%"):
        return None  # of another language
    with suppress(*errors):
        plain = TransformerManager().transform_cell(text)
        return ast.parse(plain), plain.split("\n")
    return None


def _made_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (each.asname or each.name.partition(".")[0] for each in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    for child in ast.iter_child_nodes(node):
        yield from _made_by(child)
