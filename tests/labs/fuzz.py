"""What readers write by mistake: bodies for a function of any exercise, and what must be said."""

from __future__ import annotations

import gc
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from widgets.panels.exercises.exercise import Exercise
from widgets.panels.exercises.judging import Report, check
from widgets.panels.exercises.returns import (
    NUMBER,
    TRUTH,
    WHOLE_NUMBER,
    WHOLE_NUMBERS,
    WrongTypeError,
)

_numbers = itertools.count()


def function(exercise: Exercise, body: str, **names: Any) -> Any:
    """The exercise's function with this body, as if it had been typed into a cell: with lines."""
    head = f"def {exercise.function}({', '.join(exercise.parameters)}):\n"
    return typed(exercise, head + "".join(f"    {line}\n" for line in body.split("\n")), **names)


def typed(exercise: Exercise, source: str, **names: Any) -> Any:
    """What a cell with this source defines."""
    name = f"<fuzz {next(_numbers)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, name, "exec"), namespace)
    return namespace[exercise.function]


def quickly(solution: Any, exercise: Exercise) -> Report:
    """Check it with a limit of one second a case.

    A process that runs ten thousand tests holds millions of objects, and looking through them all
    would count as a case's own time: they are left alone meanwhile.
    """
    gc.freeze()
    try:
        return check(solution, replace(exercise, time_limit_s=1.0))
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Body:
    """A wrong body, and the kind of failure and words that must be told."""

    text: str
    kind: str
    words: str


def _call(exercise: Exercise, name: str = "right") -> str:
    return f"{name}({', '.join(exercise.parameters)})"


def broken(exercise: Exercise) -> dict[str, Body]:
    """Bodies that break, whatever the exercise asks."""
    first, right = exercise.parameters[0], _call(exercise)
    return {
        "typo in a name": Body(
            f"answer = {right}\nreturn anwser", "raised", "line 3 (`return anwser`): there is no "
            "`anwser`; did you mean `answer`?",
        ),
        "name that is nowhere": Body(
            "return zzqqxx", "raised", f"there is no `zzqqxx`; here are `{first}`"
        ),
        "wrong attribute": Body(
            f"return {first}.zzqqxx", "raised", f"line 2 (`return {first}.zzqqxx`): `{first}` has "
            "no `zzqqxx`",
        ),
        "raises": Body(
            'raise ValueError("my own words")', "raised", "a ValueError: my own words"
        ),
        "divides by zero": Body("return 1 / 0", "raised", "line 2 (`return 1 / 0`) with a Zero"),
        "exits": Body("import sys\nsys.exit(1)", "raised", "line 3 (`sys.exit(1)`): exit()"),
        "interrupts": Body("raise KeyboardInterrupt", "raised", "a KeyboardInterrupt"),
        "recursion without end": Body(
            f"return {_call(exercise, exercise.function)}", "raised", "calls itself without end"
        ),
        "endless loop": Body(
            "while True:\n    pass", "time", "took longer than 1 s in line"
        ),
        "endless loop that catches": Body(
            "while True:\n    try:\n        len('')\n    except Exception:\n        pass", "time",
            "took longer than 1 s",
        ),
        "forgotten return": Body(f"answer = {right}", "type", "is a `return` missing?"),
    }  # fmt: skip


VALUES: dict[str, tuple[str, str]] = {
    "None": ("None", "returned None: is a `return` missing?"),
    "float": ("3.5", "returned the float 3.5"),
    "NaN": ("float('nan')", "returned the float nan"),
    "string": ("'7'", "returned the text '7'"),
    "tuple": ("(1, 2)", "returned a tuple, (1, 2)"),
    "list": ("[1.5]", "[1.5]"),
    "dict": ("{1: 2}", "returned a dict, {1: 2}"),
    "True": ("True", "returned True"),
    "whole number": ("7", "returned the whole number 7"),
    "huge number": ("10 ** 5000", "returned a whole number of 16,610 bits"),
    "negative number": ("-5", "returned the whole number -5"),
    "infinity": ("float('inf')", "returned the float inf"),
    "function": ("len", "returned the function `len` itself"),
    "complex": ("1j", "returned a complex, 1j"),
    "object": ("object()", "returned an object"),
}
"""What may be returned in place of an answer, and the words where it cannot be one."""


def refused(exercise: Exercise, text: str) -> bool:
    """Whether the exercise cannot read such an answer."""
    try:
        exercise.returns.read(eval(text))
    except WrongTypeError:
        return True
    return False


AS_NUMPY: dict[Any, Callable[[Any], Any]] = {
    WHOLE_NUMBER: np.int64,
    NUMBER: np.float64,
    TRUTH: np.bool_,
    WHOLE_NUMBERS: np.array,
}

OFF: dict[Any, tuple[str, ...]] = {
    WHOLE_NUMBER: ("right + 1", "right - 1"),
    TRUTH: ("not right",),
    NUMBER: ("-right",),
    WHOLE_NUMBERS: ("[n - 1 for n in right]", "right[1:]", "right[:-1]"),
}
"""Answers that are next to the right one, by what is returned."""
