"""The notebook's last attempt to define a name: did it succeed?

A cell that does not compile, or stops before its `def`, leaves the function of an earlier cell
behind. Grading that one would answer a question that was not asked. Reads the shell's history,
which has every cell that was run, also those that failed.
"""

from __future__ import annotations

import ast
import inspect
import re
import symtable
import textwrap
from typing import Any, TypeGuard

_Def = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_ADVICE = (
    "Nothing was checked, because what was defined before is not what you wrote last: correct the "
    "cell and run it again."
)


def stale(name: str, shell: Any) -> str:
    """Why the object called `name` is not what the reader wrote last, in a sentence; "" if it is.

    Takes the shell's word where the source of the object cannot be seen.
    """
    history = list(getattr(getattr(shell, "history_manager", None), "input_hist_raw", ()))
    for number in range(len(history) - 1, 0, -1):
        cell = history[number]
        if not re.search(rf"\b{re.escape(name)}\b", cell):
            continue
        try:
            tree = ast.parse(_transformed(cell, shell))
        except SyntaxError as error:
            if _mentions(name, cell):
                return _with_syntax_error(name, number, error)
            continue
        node = _definition(name, tree)
        if node is not None:
            return _not_reached(name, number, node, shell)
        if cell.startswith("%%") and _mentions(name, cell):
            return ""  # The magic may have defined it.
    return ""


def _transformed(cell: str, shell: Any) -> str:
    """The cell as Python: magics and `!commands` are calls then."""
    transform = getattr(shell, "transform_cell", None)
    return cell if transform is None else transform(cell)


def _mentions(name: str, cell: str) -> bool:
    """Whether a cell that does not compile looks as if it defines the name."""
    return bool(
        re.search(
            rf"^\s*(async\s+)?(def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=(?!=)",
            cell,
            re.MULTILINE,
        )
    )


def _definition(name: str, tree: ast.Module) -> ast.stmt | None:
    """The last statement of the cell itself that gives the name a value."""
    return next((node for node in reversed(tree.body) if _binds(name, node)), None)


def _binds(name: str, node: ast.stmt) -> bool:
    """Whether a statement, or what stands in it, may give the notebook's name a value: a `def`, an
    assignment, an import, a loop, or a function that declares it `global`."""
    if _is_def(name, node):
        return True
    try:
        tables = [symtable.symtable(ast.unparse(node), "cell", "exec")]
    except SyntaxError:  # A `return` or `yield` outside a function: it did not run.
        return False
    while tables:
        table = tables.pop()
        tables += table.get_children()
        if name in table.get_identifiers():
            symbol = table.lookup(name)
            here = table.get_type() == "module" or symbol.is_declared_global()
            if here and (symbol.is_assigned() or symbol.is_imported()):
                return True
    return False


def _is_def(name: str, node: ast.stmt) -> TypeGuard[_Def]:
    return isinstance(node, _Def) and node.name == name


def _with_syntax_error(name: str, number: int, error: SyntaxError) -> str:
    line = (error.text or "").strip()
    where = f" in line {error.lineno}" if error.lineno else ""
    shown = f" (`{line}`)" if line else ""
    return (
        f"The last cell that defines `{name}`, In [{number}], has a syntax error{where}{shown}: "
        f"{error.msg}. {_ADVICE}"
    )


def _not_reached(name: str, number: int, node: ast.stmt, shell: Any) -> str:
    if not _is_def(name, node):
        return ""
    try:
        # As Python sees it: comments and blank lines do not count.
        source = textwrap.dedent(inspect.getsource(shell.user_ns[name]))
        found = ast.parse(source).body[0]
    except (OSError, TypeError, KeyError, SyntaxError, IndexError):
        return ""
    # A decorator may have put a function of another name in its place.
    replaced = bool(node.decorator_list) and getattr(found, "name", name) != name
    if replaced or ast.dump(found) == ast.dump(node):
        return ""
    return (
        f"The last cell that defines `{name}`, In [{number}], stopped before it came to the "
        f"definition. {_ADVICE}"
    )
