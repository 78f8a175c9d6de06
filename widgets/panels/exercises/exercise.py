"""Exercises: cases to pass, misconceptions to name, hints to give, a score equal on any machine.

A chapter's exercise is a module `labs/exercises/NAME.py` with a module-level `EXERCISE`; its worked
solution is `labs/solutions/NAME.py`. Here is what they are made of; `checking` judges a
solution. Knows nothing about widgets or notebooks.

    EXERCISE = Exercise(
        key="45a.policy", title="Admit waiting requests", function="admit",
        parameters=("free", "waiting"), returns=WHOLE_NUMBER,
        task="Return how many of the waiting requests may join now.",
        cases=(Case.call("room for two", (2, 5), 2), Case("drains the queue", drains)),
        random_case=lambda draw: Case.call("drawn", args := draw_args(draw), oracle(*args)),
        misconceptions=(Misconception("fills a full batch", message, (always_admit,)),),
        hints=("...", "...", "..."),
        score=virtual_seconds, naive={"one at a time": one_at_a_time},
        picture=Picture("Requests in each step", "step", "requests", sizes),
    )
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import random
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from widgets.notebooks.checkout import labs_directory as labs_directory
from widgets.panels.exercises.asked import said
from widgets.panels.exercises.returns import ANYTHING, Returns, Wrong, same, shortened

EXACT = 1e-9
"""Tolerance where floats are compared, if an exercise says nothing else."""


@dataclass(frozen=True)
class Case:
    """One situation. `run(solution)` raises Wrong where the solution's answers are wrong."""

    name: str
    run: Callable[[Any], object]

    @classmethod
    def call(
        cls, name: str, arguments: Sequence[Any], expected: Any, tolerance: float = EXACT
    ) -> Case:
        """The solution called with `arguments` must return `expected`; floats may differ by the
        tolerance, relative or absolute."""
        given = tuple(arguments)

        def run(solution: Any) -> None:
            # A solution that changes its arguments must not spoil the next try.
            got = solution(*copy.deepcopy(given))
            if not same(got, expected, tolerance):
                message = f"`{said(solution, given)}` returned {shortened(got)}, "
                message += f"expected {shortened(expected)}"
                if isinstance(expected, float):
                    message += f" (within {tolerance:g})"
                raise Wrong(message, got=(got,))

        return cls(name, run)


@dataclass(frozen=True)
class Like:
    """A family of mistakes, such as "always the same number": `make(answer)` is the member whose
    first answer is the reader's."""

    make: Callable[[Any], Any]


@dataclass(frozen=True)
class Misconception:
    """A typical wrong idea, as the functions that have it, and what to say about it.

    It is named only where one of these functions passes and fails the same cases as the reader's,
    with the same answers in each that fails.
    """

    name: str
    message: str
    solutions: tuple[Any, ...]
    """Each a solution, or a `Like`."""
    written: tuple[Any, ...] = ()
    """Where `solutions` only stand for the mistake: solutions a reader may write, for tests."""


@dataclass(frozen=True)
class Score:
    """How good a correct solution is, by counts and virtual seconds: equal on any machine."""

    share: float
    """From 0, the worked solution's being 1; more where a solution is better than that."""
    words: str
    """"14 steps and 2.31 virtual seconds; the worked solution needs 14 and 2.31"."""


@dataclass(frozen=True)
class Picture:
    """What a rule does, as numbers to draw: `values(solution)` for each place on the x axis."""

    title: str
    x: str
    y: str
    values: Callable[[Any], Sequence[float]]
    at: tuple[float, ...] = ()
    """Where on the x axis; left out, 1, 2, 3, ..."""


@dataclass(frozen=True)
class Exercise:
    """What to write, and how to tell whether it is right."""

    key: str
    """Where the score is kept: chapter, dot, name."""
    title: str
    task: str
    function: str
    """The name the reader gives the solution in the notebook."""
    cases: tuple[Case, ...]
    hints: tuple[str, str, str]
    parameters: tuple[str, ...] = ()
    """What the solution is called with, by name; empty: not checked."""
    returns: Returns = ANYTHING
    misconceptions: tuple[Misconception, ...] = ()
    random_case: Callable[[random.Random], Case] | None = None
    num_random: int = 20
    score: Callable[[Any], Score] | None = None
    """Called with a solution that passed every case. None where passing leaves nothing to gain."""
    naive: Mapping[str, Any] = field(default_factory=dict)
    """Rules that pass every case and score clearly less: for the tests of the teaching."""
    picture: Picture | None = None
    tolerance: float = EXACT
    """Where answers are compared with a misconception's."""
    called: bool = True
    """False: cases get the solution itself, because nothing here calls it (46 runs its source)."""
    time_limit_s: float = 5.0
    """For one case, of the solution's own time."""
    start_s: float = 0.0
    """Seconds that another process may take besides, for all cases together."""
    seed: int | None = None
    """Draws other randomised cases than the notebook's: for grading."""

    def __post_init__(self) -> None:
        if not self.cases or len(self.hints) != 3:
            raise ValueError(f"Exercise({self.key!r}): expected at least one case and three hints")
        if bool(self.naive) != (self.score is not None):
            raise ValueError(
                f"Exercise({self.key!r}): a score needs a naive rule that passes and scores less, "
                "and without a score there is none"
            )

    def drawn_cases(self) -> list[Case]:
        """The randomised cases: the same on every machine, drawn from the key and the seed."""
        if self.random_case is None:
            return []
        drawn_by = self.key if self.seed is None else f"{self.key}:seed {self.seed}"
        return [
            self.random_case(random.Random(f"{drawn_by}:{index}"))
            for index in range(self.num_random)
        ]


def is_stub(solution: Any) -> bool:
    """True for a function or class whose bodies have nothing but a docstring, `...`, `pass`, or
    `raise NotImplementedError`; False where the source cannot be seen."""
    try:
        source = textwrap.dedent(inspect.getsource(solution))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return False
    functions = [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    # A class may come with helpers that are written already: any empty method makes it a stub.
    empty = [all(_says_nothing(line) for line in function.body) for function in functions]
    return any(empty) if inspect.isclass(solution) else bool(empty) and all(empty)


def _says_nothing(line: ast.stmt) -> bool:
    if isinstance(line, ast.Pass):
        return True
    if isinstance(line, ast.Expr):
        return isinstance(line.value, ast.Constant)
    if isinstance(line, ast.Raise) and line.exc is not None:
        error = line.exc.func if isinstance(line.exc, ast.Call) else line.exc
        return isinstance(error, ast.Name) and error.id == "NotImplementedError"
    return False


def load_exercise(name: str, labs: Path | None = None) -> Exercise:
    """`EXERCISE` of `labs/exercises/NAME.py`. Raises a sentence where there is none."""
    path = (labs or labs_directory()) / "exercises" / f"{name}.py"
    if not path.is_file():
        known = sorted(entry.stem for entry in path.parent.glob("[0-9]*.py"))
        raise FileNotFoundError(
            f"there is no exercise {name!r}; there are: {', '.join(known) or 'none'}"
        )
    exercise = getattr(load_module(path), "EXERCISE", None)
    if not isinstance(exercise, Exercise):
        raise ValueError(f"labs/exercises/{name}.py has no EXERCISE")
    return exercise


def load_solution(
    name: str, exercise: Exercise, labs: Path | None = None
) -> tuple[Any, str] | None:
    """The worked solution of an exercise: the object itself, and the source to show.

    None in a copy of the lab that was handed out without its solutions.
    """
    path = (labs or labs_directory()) / "solutions" / f"{name}.py"
    if not path.is_file():
        return None
    source = path.read_text(encoding="utf-8")
    return getattr(load_module(path), exercise.function), source


def load_module(path: Path) -> ModuleType:
    """The file, run anew: a chapter's name is no Python name, so it cannot be imported."""
    spec = importlib.util.spec_from_file_location(f"labs_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A data class looks its own module up while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
