"""The judgement of a solution: what broke is said first, then what is wrong, last a misconception.

A misconception is named only where the solution does exactly what that mistake does: the same cases
fail, with the same answers. Knows nothing about widgets or notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from widgets import theme
from widgets.panels.exercises import explain
from widgets.panels.exercises.asked import Asked, RaisedError, misfit
from widgets.panels.exercises.exercise import Case, Exercise, Like, Misconception, Score, is_stub
from widgets.panels.exercises.printed import Printed, printed_here
from widgets.panels.exercises.returns import BrokenError, Wrong, WrongTypeError, same
from widgets.panels.exercises.time_limit import Cut, TimeLimitError, limited, until

Status = Literal["not attempted", "passed", "failed"]
Kind = Literal["raised", "time", "type", "refused", "wrong"]

ORDER: tuple[Kind, ...] = ("raised", "time", "type", "refused", "wrong")
"""What is told first."""


_PATIENCE = 10
"""Times the limit of one case: for scored workloads, and for the mistakes that are compared."""


@dataclass(frozen=True)
class Failure:
    """One case that a solution did not pass."""

    case: Case
    kind: Kind
    text: str
    """What happened, in words."""
    got: Any = None
    """What the solution did, to compare with what a mistake would do."""
    printed: str = ""

    def sentence(self) -> str:
        """Which case, and what happened."""
        end = "" if self.text.endswith("?") else "."
        return f"Case “{self.case.name}”: {self.text}{end}"


@dataclass(frozen=True)
class Pictured:
    """The numbers of an exercise's picture."""

    yours: tuple[float, ...]
    worked: tuple[float, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a check found."""

    status: Status
    covered: str
    """What was run, in a sentence."""
    failures: tuple[Failure, ...] = ()
    misconception: Misconception | None = None
    score: Score | None = None
    problem: str = ""
    """Why nothing could be run, in a sentence."""
    pictured: Pictured | None = None

    @property
    def told(self) -> Failure | None:
        """The failure to tell about: the first of the gravest kind."""
        return min(self.failures, key=lambda each: ORDER.index(each.kind), default=None)

    def sentences(self) -> list[str]:
        """All of it in words, the most useful first."""
        if self.status == "not attempted":
            return ["Not attempted yet.", self.covered]
        lines = [self.problem] if self.problem else []
        if self.misconception is not None:
            lines.append(self.misconception.message)
        told = self.told
        if told is not None and told.kind != "wrong":
            lines.append(_ended(told.sentence()))
        lines.append(self.covered)
        if told is not None and told.kind == "wrong":
            lines.append(_ended(f"First failure. {told.sentence()}"))
        if told is not None and told.printed:
            lines.append(f"In this case your code printed: {told.printed}")
        if self.score is not None:
            lines.append(f"Score {_percent(self.score.share)}: {self.score.words}.")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def check(
    solution: Any,
    exercise: Exercise,
    *,
    worked: Any = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Run a solution through all cases. An untouched stub is "not attempted", which is no failure.

    Stops early, also within a case, with what it has when `should_stop()` turns true. `worked` is
    the worked solution, for the picture.
    """
    drawn = exercise.drawn_cases()
    cases = [*exercise.cases, *drawn]
    total = f"{len(exercise.cases)} visible and {len(drawn)} randomised cases"
    untouched = Report("not attempted", f"{total} wait for your {exercise.function}.")
    if is_stub(solution):
        return untouched
    if exercise.parameters and (
        problem := misfit(solution, exercise.function, exercise.parameters)
    ):
        return Report("failed", f"None of {total} was run.", problem=problem)
    trials: list[Trial] = []

    def covered(whole: bool) -> str:
        passed = sum(each.failure is None for each in trials)
        words = f"{passed} of {len(trials)} cases passed, out of {total}"
        return f"{words}." if whole else f"{words} (stopped early)."

    try:
        with until(should_stop):
            for case in cases:
                on_case(len(trials), len(cases))
                trials.append(tried(solution, case, exercise))
                failure = trials[-1].failure
                if failure is not None and failure.kind == "time":
                    # Every further case would take as long.
                    break
            return _reported(exercise, solution, worked, trials, covered(len(trials) == len(cases)))
    except NotImplementedError:
        return untouched
    except Cut:
        return Report("failed", covered(False), _failures(trials))


def _failures(trials: Sequence[Trial]) -> tuple[Failure, ...]:
    return tuple(each.failure for each in trials if each.failure is not None)


def _reported(
    exercise: Exercise, solution: Any, worked: Any, trials: Sequence[Trial], covered: str
) -> Report:
    """What is to be said of a solution once its cases have run."""
    failures = _failures(trials)
    pictured = None
    if all(each.kind == "wrong" for each in failures):
        pictured = _pictured(exercise, solution, worked)
    if failures:
        return Report("failed", covered, failures, named(exercise, trials), pictured=pictured)
    score, failure = _scored(exercise, solution)
    if failure is not None:
        return Report("failed", covered, (failure,))
    return Report("passed", covered, score=score, pictured=pictured)


@dataclass
class Trial:
    """One case run on one solution."""

    case: Case
    failure: Failure | None = None
    answers: tuple[Any, ...] = field(default_factory=tuple)


def tried(solution: Any, case: Case, exercise: Exercise) -> Trial:
    """Run one case. Raises NotImplementedError where the solution does."""
    asked = _asked(solution, exercise)
    printed = Printed()

    def work() -> None:
        with printed_here(printed):
            case.run(asked if exercise.called else solution)

    error: BaseException | None = None
    try:
        limited(work, exercise.time_limit_s, exercise.start_s)
    except TimeLimitError as late:
        error = late
    except Exception as found:
        error = found
    # The engine between solution and case may have caught what the solution raised.
    if asked.error is not None and not isinstance(error, TimeLimitError):
        error = asked.error
    if isinstance(error, NotImplementedError):
        raise error
    if error is None:
        return Trial(case, None, asked.answers)
    kind, text = _told(error, asked, solution)
    got = getattr(error, "got", None)
    failure = Failure(case, kind, text, asked.answers if got is None else got, str(printed))
    return Trial(case, failure, asked.answers)


def _asked(solution: Any, exercise: Exercise) -> Asked:
    return Asked(solution, exercise.function, exercise.parameters, exercise.returns)


def _told(error: BaseException, asked: Asked, solution: Any) -> tuple[Kind, str]:
    if isinstance(error, RaisedError):
        return "raised", explain.raised(error, solution)
    if isinstance(error, BrokenError):
        return "raised", str(error)
    if isinstance(error, TimeLimitError):
        text = str(error) + explain.stuck_at(error.frame, solution)
        if asked.pending:
            text = f"`{asked.pending}`: {text}"
        slow = "; is there a loop that never ends, or one that tries far too many ways?"
        return "time", text + ("" if error.stuck else slow)
    if isinstance(error, WrongTypeError):
        return "type", str(error)
    if isinstance(error, Wrong):
        return "wrong", str(error)
    return "refused", f"the engine refused the answer with {type(error).__name__}: {error}"


def named(exercise: Exercise, trials: Sequence[Trial]) -> Misconception | None:
    """The misconception that gives exactly these answers; None where there is none."""
    failures = [each.failure for each in trials if each.failure is not None]
    if not failures or any(each.kind != "wrong" for each in failures):
        return None
    # These are our own functions, and they end: on a busy machine one may take longer than what it
    # is compared with, which says nothing about the answers.
    patient = replace(exercise, time_limit_s=_PATIENCE * exercise.time_limit_s)
    # Failed cases first: they tell most mistakes apart at once.
    ordered = sorted(trials, key=lambda each: each.failure is None)
    for misconception in exercise.misconceptions:
        for solution in misconception.solutions:
            if isinstance(solution, Like):
                if not trials[0].answers:
                    continue
                solution = solution.make(trials[0].answers[0])
            if all(_does_the_same(solution, each, patient) for each in ordered):
                return misconception
    return None


def _does_the_same(mistake: Any, trial: Trial, exercise: Exercise) -> bool:
    try:
        other = tried(mistake, trial.case, exercise).failure
    except NotImplementedError:
        return False
    if trial.failure is None or other is None:
        return trial.failure is other
    return other.kind == "wrong" and same(trial.failure.got, other.got, exercise.tolerance)


def _scored(exercise: Exercise, solution: Any) -> tuple[Score | None, Failure | None]:
    """The score, or what goes wrong in the workloads that are scored."""
    judge = exercise.score
    if judge is None:
        return None, None
    found: list[Score] = []
    case = Case("the scored workloads", lambda asked: found.append(judge(asked)))
    allowed_s = _PATIENCE * exercise.time_limit_s
    failure = tried(solution, case, replace(exercise, time_limit_s=allowed_s)).failure
    return (None, failure) if failure else (Score(max(found[0].share, 0.0), found[0].words), None)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", ".", "!")) else f"{sentence}."


def _percent(share: float) -> str:
    # Rounded down below the solution's score: 100 % is said of no rule that loses to it.
    shown = theme.format_percent(math.floor(100 * share) / 100 if share < 1 else share)
    better = share > 1 and shown != theme.format_percent(1.0)
    return f"{shown}, better than the worked solution" if better else shown


def _pictured(exercise: Exercise, solution: Any, worked: Any) -> Pictured | None:
    """Both rules' numbers; None where the reader's cannot be had."""
    picture = exercise.picture
    if picture is None:
        return None

    def values(of: Any) -> tuple[float, ...]:
        asked = _asked(of, exercise) if exercise.called else of

        def work() -> list[float]:
            with printed_here(Printed()):
                return [float(each) for each in picture.values(asked)]

        return tuple(limited(work, 2 * exercise.time_limit_s, exercise.start_s))

    try:
        yours = values(solution)
    except Exception:  # Its failures are told in words.
        return None
    return Pictured(yours, values(worked) if worked is not None else ())


def assert_sound(exercise: Exercise, solution: Any, least_wrong: int = 3) -> None:
    """For the tests of the teaching: the solution passes; at least three misconceptions, each of
    whose solutions fails and meets its own message; every naive rule passes and scores clearly
    less. Raises AssertionError naming what is not so."""
    report = check(solution, exercise)
    assert report.status == "passed", f"{exercise.key}: the worked solution fails: {report}"
    assert len(exercise.misconceptions) >= least_wrong, f"{exercise.key}: too few misconceptions"
    messages = [each.message for each in exercise.misconceptions]
    assert len(set(messages)) == len(messages), f"{exercise.key}: two messages are the same"
    for each in exercise.misconceptions:
        wrong = [*(one for one in each.solutions if callable(one)), *each.written]
        assert wrong, f"{exercise.key}: {each.name!r} has no solution to try"
        for place, one in enumerate(wrong):
            found = check(one, exercise)
            met = found.misconception.name if found.misconception else None
            assert found.status == "failed", f"{exercise.key}: {each.name!r} [{place}] passes"
            assert met == each.name, (
                f"{exercise.key}: {each.name!r} [{place}] is told about {met!r}: {found}"
            )
    for name, rule in exercise.naive.items():
        found = check(rule, exercise)
        assert found.status == "passed", f"{exercise.key}: naive {name!r} fails: {found}"
        assert found.score is not None and report.score is not None
        assert found.score.share <= report.score.share - MARGIN, (
            f"{exercise.key}: naive {name!r} scores {found.score.share:.3f}"
        )


MARGIN = 0.05
"""How much less than the worked solution a naive rule has to score."""
