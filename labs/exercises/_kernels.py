"""Runs a kernel that a reader wrote in Triton's interpreter, in a process of its own, and tells
what broke in it. `_interpreted.py` is that process.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import linecache
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from widgets.panels.exercises.exercise import load_module
from widgets.panels.exercises.returns import BrokenError, WrongTypeError
from widgets.panels.exercises.time_limit import TimeLimitError, limit_s

INTERPRETED = Path(__file__).with_name("_interpreted.py")
CASE_S = 5.0
"""For a case, where nothing else is said."""
START_S = 120.0
"""For the process that all cases share: most of its time is starting it."""

inputs: Callable[[dict[str, Any]], tuple[Tensor, Tensor, Tensor]] = load_module(INTERPRETED).inputs


def written(source: str) -> Any:
    """A function from text whose source can be had again. Nothing here calls it."""
    name = f"<attend {len(linecache.cache)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    namespace: dict[str, Any] = {}
    exec(compile(source, name, "exec"), namespace)
    return namespace["attend"]


_KNOWN: dict[tuple[str, int], list[dict[str, Any]]] = {}


def results(solution: Any, shapes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a solution makes of every shape, in one process; remembered by its source."""
    source = textwrap.dedent(inspect.getsource(solution)).strip()
    known = source, len(shapes)
    if known in _KNOWN:
        return _KNOWN[known]
    _check_returns(source)
    found = _interpret(source, shapes)
    if not any("late" in each for each in found):
        _KNOWN[known] = found
    return found


def _check_returns(source: str) -> None:
    """What a kernel returns cannot be seen from outside, and what Triton says of it is no help."""
    returned = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return)]
    if not any(returned):
        raise WrongTypeError("`attend` returned None: is a `return` missing?")
    for value in returned:
        if isinstance(value, ast.Tuple):
            raise WrongTypeError(
                f"`attend` returned a tuple, `{ast.unparse(value)}`, expected DIM numbers"
            )
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            raise WrongTypeError("`attend` returned None, expected DIM numbers")
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            raise WrongTypeError(
                f"`attend` returned the text {value.value!r}, expected DIM numbers"
            )


def _interpret(source: str, shapes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        raise BrokenError("Triton is not installed here (it runs on Linux): no kernel can be tried")
    asked = {"source": source, "cases": list(shapes), "limit_s": limit_s() or CASE_S}
    try:
        done = subprocess.run(
            [sys.executable, str(INTERPRETED)],
            input=json.dumps(asked),
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [{"late": START_S}] * len(shapes)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BrokenError(f"the interpreter's process ended without an answer: {last}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def raise_what_broke(solution: Any, found: dict[str, Any]) -> None:
    """Raise what one result says went wrong, with the line in the reader's source."""
    if "late" in found:
        raise TimeLimitError(f"it took longer than {found['late']:g} s")
    if "error" not in found:
        return
    text, line = found["error"]["text"], found["error"]["line"]
    where = ""
    if not line and "returned" in text:
        # Seen only where the result is stored, which is no line of the reader's.
        line = _last_return(solution)
    if line:
        source, first = inspect.getsourcelines(solution)
        shown = f" (`{source[line - 1].strip()}`)" if line <= len(source) else ""
        where = f" in line {line + max(first, 1) - 1}{shown}"
    raise BrokenError(f"`attend` stopped{where}: {text}")


def _last_return(solution: Any) -> int:
    """The line of the last `return`, from 1; 0 without one."""
    source = textwrap.dedent(inspect.getsource(solution)).strip()
    found = (node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    return max(found, default=0)
