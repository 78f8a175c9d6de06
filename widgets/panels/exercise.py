"""Exercises: cases to pass, misconceptions to name, hints to give, a score equal on any machine.

A chapter's exercise is a module `labs/exercises/NAME.py` with a module-level `EXERCISE`; its worked
solution is `labs/solutions/NAME.py`. Here is what they are made of and how a solution is checked.
Knows nothing about widgets or notebooks.

    EXERCISE = Exercise(
        key="45a.policy", title="Admit waiting requests", function="admit",
        task="Return how many of the waiting requests may join now.",
        cases=(Case.call("room for two", (4, 2), 2), Case("drains the queue", drains)),
        random_case=lambda draw: Case.call("drawn", args := draw_args(draw), oracle(*args)),
        misconceptions=(Misconception("joins a full batch", message, seen=overfull),),
        hints=("...", "...", "..."),
        score=virtual_seconds, wrong={"joins a full batch": always_admit},
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
from typing import Any, Literal

from widgets import theme
from widgets.panels.time_limit import TimeLimitError, limited

Status = Literal["not attempted", "passed", "failed"]


class Wrong(Exception):
    """A case's verdict on a solution, in a sentence; `got` and `expected` help detectors."""

    def __init__(self, message: str, *, got: Any = None, expected: Any = None) -> None:
        super().__init__(message)
        self.got, self.expected = got, expected


@dataclass(frozen=True)
class Case:
    """One situation. `run(solution)` raises Wrong, or anything else, where the solution fails."""

    name: str
    run: Callable[[Any], object]
    args: tuple[Any, ...] = ()
    """What the solution is called with, where that is all there is to say: for detectors."""

    @classmethod
    def call(cls, name: str, args: Sequence[Any], expected: Any) -> Case:
        """The solution called with `args` must return `expected`."""
        given = tuple(args)

        def run(solution: Any) -> None:
            # A solution that changes its arguments must not spoil the next try.
            got = solution(*copy.deepcopy(given))
            if got != expected:
                shown = ", ".join(repr(value) for value in given)
                message = f"called with ({shown}) it returned {got!r}, expected {expected!r}"
                raise Wrong(message, got=got, expected=expected)

        return cls(name, run, given)


@dataclass(frozen=True)
class Failure:
    """One case that a solution did not pass."""

    case: Case
    error: BaseException

    @property
    def got(self) -> Any:
        """What the solution returned, where the case says so."""
        return getattr(self.error, "got", None)

    @property
    def expected(self) -> Any:
        """What it should have returned, where the case says so."""
        return getattr(self.error, "expected", None)

    def sentence(self) -> str:
        """What happened, in words."""
        if isinstance(self.error, (Wrong, TimeLimitError)):
            return f"{self.case.name}: {self.error}"
        return f"{self.case.name}: {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True)
class Misconception:
    """A typical wrong idea: how to recognise it in what failed, and what to say."""

    name: str
    message: str
    seen: Callable[[Sequence[Failure]], bool]


@dataclass(frozen=True)
class Score:
    """How good a correct solution is, by counts and virtual seconds: equal on any machine."""

    share: float
    """From 0 to 1, the worked solution's being 1."""
    words: str
    """"14 steps and 2.31 virtual seconds; the worked solution needs 14 and 2.31"."""


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
    misconceptions: tuple[Misconception, ...] = ()
    random_case: Callable[[random.Random], Case] | None = None
    num_random: int = 20
    score: Callable[[Any], Score] | None = None
    """Called with a solution that passed every case."""
    wrong: Mapping[str, Any] = field(default_factory=dict)
    """Misconception -> a solution that has it: for the tests of the teaching."""
    time_limit_s: float = 5.0
    """For one case."""

    def __post_init__(self) -> None:
        if not self.cases or len(self.hints) != 3:
            raise ValueError(f"Exercise({self.key!r}): expected at least one case and three hints")
        unknown = set(self.wrong) - {each.name for each in self.misconceptions}
        if unknown:
            raise ValueError(f"Exercise({self.key!r}): no misconception {sorted(unknown)}")

    def drawn_cases(self) -> list[Case]:
        """The randomised cases: the same on every machine, drawn from the key."""
        if self.random_case is None:
            return []
        return [
            self.random_case(random.Random(f"{self.key}:{index}"))
            for index in range(self.num_random)
        ]


@dataclass(frozen=True)
class Report:
    """What a check found."""

    status: Status
    covered: str
    """What was run, in a sentence."""
    failures: tuple[Failure, ...] = ()
    misconception: Misconception | None = None
    score: Score | None = None

    def sentences(self) -> list[str]:
        """All of it in words, the most useful first."""
        if self.status == "not attempted":
            return ["Not attempted yet.", self.covered]
        lines = [self.covered]
        if self.misconception is not None:
            lines.insert(0, self.misconception.message)
        if self.failures:
            lines.append(f"First failure: {self.failures[0].sentence()}.")
        if self.score is not None:
            percent = theme.format_percent(self.score.share)
            lines.append(f"Score {percent}: {self.score.words}.")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def check(
    solution: Any,
    exercise: Exercise,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Run a solution through all cases. An untouched stub is "not attempted", which is no failure.

    Stops early, with what it has, when `should_stop()` turns true.
    """
    drawn = exercise.drawn_cases()
    cases = [*exercise.cases, *drawn]
    total = f"{len(exercise.cases)} visible and {len(drawn)} randomised cases"
    if is_stub(solution):
        return Report("not attempted", f"{total} wait for your {exercise.function}.")
    failures: list[Failure] = []
    done = 0
    for case in cases:
        if should_stop():
            break
        on_case(done, len(cases))
        done += 1
        try:
            limited(lambda case=case: case.run(solution), exercise.time_limit_s)
        except NotImplementedError:
            return Report("not attempted", f"{total} wait for your {exercise.function}.")
        except Exception as error:
            failures.append(Failure(case, error))
            if isinstance(error, TimeLimitError):
                # Every further case would take as long.
                break
    covered = f"{done - len(failures)} of {done} cases passed, out of {total}"
    covered += " (stopped early)." if done < len(cases) else "."
    if failures:
        found = next((each for each in exercise.misconceptions if each.seen(failures)), None)
        return Report("failed", covered, tuple(failures), found)
    if done < len(cases):
        return Report("failed", covered)
    return Report("passed", covered, score=_score(exercise, solution))


def _score(exercise: Exercise, solution: Any) -> Score | None:
    judge = exercise.score
    if judge is None:
        return None
    score = limited(lambda: judge(solution), 10 * exercise.time_limit_s)
    return Score(min(max(score.share, 0.0), 1.0), score.words)


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


def labs_directory() -> Path:
    """The checkout's `labs/`, or `labs/` below the current directory."""
    checkout = Path(__file__).resolve().parents[2] / "labs"
    return checkout if checkout.is_dir() else Path.cwd() / "labs"


def load_exercise(name: str, labs: Path | None = None) -> Exercise:
    """`EXERCISE` of `labs/exercises/NAME.py`. Raises a sentence where there is none."""
    path = (labs or labs_directory()) / "exercises" / f"{name}.py"
    if not path.is_file():
        known = sorted(entry.stem for entry in path.parent.glob("*.py"))
        raise FileNotFoundError(
            f"there is no exercise {name!r}; there are: {', '.join(known) or 'none'}"
        )
    exercise = getattr(_load_module(path), "EXERCISE", None)
    if not isinstance(exercise, Exercise):
        raise ValueError(f"labs/exercises/{name}.py has no EXERCISE")
    return exercise


def load_solution(name: str, exercise: Exercise, labs: Path | None = None) -> tuple[Any, str]:
    """The worked solution of an exercise: the object itself, and the source to show."""
    path = (labs or labs_directory()) / "solutions" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    return getattr(_load_module(path), exercise.function), source


def _load_module(path: Path) -> ModuleType:
    """The file, run anew: a chapter's name is no Python name, so it cannot be imported."""
    spec = importlib.util.spec_from_file_location(f"labs_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A data class looks its own module up while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def assert_sound(exercise: Exercise, solution: Any, least_wrong: int = 3) -> None:
    """For the tests of the teaching: the solution passes, at least three plausible wrong answers
    fail, each met by its own message. Raises AssertionError naming what is not so."""
    report = check(solution, exercise)
    assert report.status == "passed", f"{exercise.key}: the worked solution fails: {report}"
    assert len(exercise.wrong) >= least_wrong, f"{exercise.key}: too few wrong answers"
    for name, wrong in exercise.wrong.items():
        report = check(wrong, exercise)
        met = report.misconception.name if report.misconception else None
        assert report.status == "failed", f"{exercise.key}: {name!r} passes"
        assert met == name, f"{exercise.key}: {name!r} is told about {met!r}: {report}"
    messages = [each.message for each in exercise.misconceptions]
    assert len(set(messages)) == len(messages), f"{exercise.key}: two messages are the same"
