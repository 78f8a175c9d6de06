"""The code of a notebook without its runs and figures, as a module.

Kept are the imports, functions, classes and constants of all cells: what a solution may need. A
constant is whatever a plain expression makes of literals and of what is kept before it. Runs
nothing.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Sequence

from widgets.notebooks.cell_order import parsed

_PLAIN_CALLS = {
    *("abs", "bool", "dict", "float", "frozenset", "int", "len", "list", "max", "min", "pow"),
    *("range", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
}
"""Builtins that make values of values, and nothing else."""
_DEFINES = re.compile(r"^\s*(def|class|async def)\b", re.MULTILINE)


def module_of(cells: Sequence[str]) -> str:
    """A module with the imports, definitions and constants of all cells, in their order.

    A cell that does not compile stays as it is: then the module does not compile either, and the
    message names the line. Lines that are IPython's, not Python's, are left out.
    """
    future: list[str] = []
    parts: list[str] = []
    known = set(dir(builtins))
    for cell in cells:
        found = parsed(cell)
        if found is None:
            # A cell of plain text or commands is no solution; one that defines something may be.
            if _DEFINES.search(cell) and not cell.lstrip().startswith("%%"):
                parts.append(cell)
            continue
        tree, lines = found
        for node in tree.body:
            if _wanted(node, known):
                known |= set(_bound(node))
                # Python takes them at the top of a module only, a notebook at the top of a cell.
                early = isinstance(node, ast.ImportFrom) and node.module == "__future__"
                (future if early else parts).append(_source(node, lines))
    return "\n\n".join(future + parts) + "\n"


def _wanted(node: ast.stmt, known: set[str]) -> bool:
    """True for what is kept, where `known` are the names that there are before it."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Assign):
        return _plain(node.value, known)
    if isinstance(node, ast.AnnAssign):
        return node.value is not None and _plain(node.value, known)
    if isinstance(node, ast.If):
        return _plain(node.test, known) and _all_wanted([*node.body, *node.orelse], known)
    if isinstance(node, ast.Try):  # `try: import numpy`
        handled = [each for handler in node.handlers for each in handler.body]
        return _all_wanted([*node.body, *handled, *node.orelse, *node.finalbody], known)
    return False


def _all_wanted(nodes: Sequence[ast.stmt], known: set[str]) -> bool:
    inside = set(known)
    for node in nodes:
        if not _wanted(node, inside):
            return False
        inside |= set(_bound(node))
    return True


def _plain(value: ast.expr, known: set[str]) -> bool:
    """True where the value can be had without running anything of the notebook."""
    if isinstance(value, ast.Lambda):
        return True
    inside = {each.id for each in ast.walk(value)
              if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}  # fmt: skip
    for each in ast.walk(value):
        if isinstance(each, ast.Call):
            if not (isinstance(each.func, ast.Name) and each.func.id in _PLAIN_CALLS):
                return False
        elif isinstance(each, ast.Name):
            if each.id not in known and each.id not in inside:
                return False
        elif isinstance(each, ast.Await | ast.Yield | ast.YieldFrom):
            return False
    return True


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a kept statement makes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (each.asname or each.name.partition(".")[0] for each in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                yield each.id
    elif isinstance(node, ast.If | ast.Try):
        handlers = getattr(node, "handlers", ())
        inside = [*node.body, *node.orelse, *(each for one in handlers for each in one.body)]
        for each in [*inside, *getattr(node, "finalbody", ())]:
            yield from _bound(each)


def _source(node: ast.stmt, lines: Sequence[str]) -> str:
    """The text of a statement, with its decorators and without what shares its lines."""
    above = [each.lineno for each in getattr(node, "decorator_list", ())]
    first, last = min([node.lineno, *above]) - 1, (node.end_lineno or node.lineno)
    taken = [line.encode() for line in lines[first:last]]
    taken[-1] = taken[-1][: node.end_col_offset]
    taken[0] = taken[0][node.col_offset :]
    return b"\n".join(taken).decode()
