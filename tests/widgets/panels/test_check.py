"""Exercises: stubs stay green, wrong ideas are named, endless loops end, scores are kept."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from widgets.panels import Case, Check, Exercise, Score, check
from widgets.panels.exercises.exercise import is_stub, load_exercise, load_solution
from widgets.panels.exercises.judging import _percent, assert_sound
from widgets.scoring.progress import Progress
from widgets.workers import raise_panel_errors

SOURCE = '''
"""How many waiting requests may join."""

from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.returns import WHOLE_NUMBER


def right(free, waiting):
    return min(free, waiting)


def drawn(draw):
    free, waiting = draw.randint(0, 9), draw.randint(0, 9)
    free = min(free, 3)
    return Case.call(f"{waiting} wait, {free} places", (free, waiting), min(free, waiting))


def ends(solution):
    if solution(0, 3) > 0:
        raise Wrong("it admits into a full batch")


def half(free, waiting):
    return min(free, waiting) if free < 4 else min(4, waiting)


EXERCISE = Exercise(
    key="45a.admit",
    title="Admission",
    task="Return how many waiting requests may join.",
    function="admit",
    parameters=("free", "waiting"),
    returns=WHOLE_NUMBER,
    cases=(Case.call("room for two", (2, 5), 2), Case("a full batch", ends)),
    random_case=drawn,
    misconceptions=(
        Misconception("all", "You admit all that wait.", (lambda free, waiting: waiting,)),
        Misconception("one", "You admit one at a time.",
                      (lambda free, waiting: min(1, free, waiting),)),
        Misconception("places", "You fill places that no request waits for.",
                      (lambda free, waiting: free,)),
    ),
    hints=("Places are scarce.", "So are requests.", "The smaller of two."),
    score=lambda solution: Score(solution(8, 8) / 8, "8 places"),
    naive={"half": half},
    picture=Picture("Admitted", "waiting", "admitted",
                    lambda solution: [solution(3, n) for n in range(6)]),
    time_limit_s=0.3,
)
'''
SOLUTION = "def admit(free, waiting):\n    return min(free, waiting)\n"


@pytest.fixture
def labs(tmp_path: Path) -> Path:
    for folder, text in (("exercises", SOURCE), ("solutions", SOLUTION)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "45a_admit.py").write_text(text)
    return tmp_path


@pytest.fixture
def exercise(labs) -> Exercise:
    return load_exercise("45a_admit", labs)


def stub(free, waiting):
    """Return how many may join."""
    raise NotImplementedError


def quiet_stub(free, waiting):
    """Return how many may join."""
    ...


class StubPolicy:
    def helper(self):
        return 1

    def order(self, waiting):
        pass


class Policy:
    def order(self, waiting):
        return sorted(waiting)


def right(free, waiting):
    return min(free, waiting)


def admit_all(free, waiting):
    return waiting


def endless(free, waiting):
    while True:
        # What a reader may write: it must not swallow the end.
        with contextlib.suppress(Exception):
            time.sleep(0.001)


@pytest.mark.parametrize("solution", [stub, quiet_stub])
def test_an_untouched_stub_is_not_attempted_and_no_failure(exercise, solution):
    report = check(solution, exercise)
    assert report.status == "not attempted" and not report.failures
    assert "2 visible and 20 randomised" in str(report)


def test_what_a_stub_is():
    assert is_stub(StubPolicy) and not is_stub(Policy)
    assert not is_stub(right) and not is_stub(len)
    # Nothing to see here: built at run time. It is found out when it is called.
    namespace: dict[str, object] = {}
    exec("def later(a, b):\n    raise NotImplementedError", namespace)
    assert not is_stub(namespace["later"])


def test_a_stub_whose_source_cannot_be_seen_is_found_out_when_called(exercise):
    namespace: dict[str, object] = {}
    exec("def later(a, b):\n    raise NotImplementedError", namespace)
    assert check(namespace["later"], exercise).status == "not attempted"


def test_a_right_solution_passes_and_is_scored_without_a_clock(exercise):
    report = check(right, exercise)
    assert (report.status, report.covered) == (
        "passed",
        "22 of 22 cases passed, out of 2 visible and 20 randomised cases.",
    )
    assert report.score == Score(1.0, "8 places")
    assert "Score 100 %" in str(report)


def test_a_copy_of_the_lab_without_solutions_checks_all_the_same(exercise, labs, headless):
    (labs / "solutions" / "45a_admit.py").unlink()
    panel = Check("45a_admit", right, labs=labs)
    panel.run()
    assert panel.result.status == "passed" and "100 %" in panel.report.value
    panel.solution_button.click()
    assert "ask your teacher" in panel.solution_view.value and not panel.solution_seen


def test_as_a_script_the_solution_is_the_programs(labs, headless, monkeypatch):
    monkeypatch.setattr("__main__.admit", right, raising=False)
    panel = Check("45a_admit", labs=labs)
    panel.run()
    assert panel.result.status == "passed"


def test_the_worked_solution_passes_and_each_wrong_idea_meets_its_own_message(exercise, labs):
    worked = load_solution("45a_admit", exercise, labs)
    assert worked is not None
    solution, source = worked
    assert source == SOLUTION
    assert_sound(exercise, solution)
    ideas = exercise.misconceptions
    with pytest.raises(AssertionError, match="too few"):
        assert_sound(replace(exercise, misconceptions=ideas[:2]), solution)
    with pytest.raises(AssertionError, match=r"'all' \[0\] passes"):
        assert_sound(
            replace(exercise, misconceptions=(replace(ideas[0], solutions=(right,)), *ideas[1:])),
            solution,
        )
    with pytest.raises(AssertionError, match="is told about"):
        twin = replace(ideas[0], name="twin", message="Another message.")
        assert_sound(replace(exercise, misconceptions=(*ideas, twin)), solution)
    with pytest.raises(AssertionError, match="two messages are the same"):
        twin = replace(ideas[0], name="twin")
        assert_sound(replace(exercise, misconceptions=(*ideas, twin)), solution)
    with pytest.raises(AssertionError, match="worked solution fails"):
        assert_sound(exercise, admit_all)
    with pytest.raises(AssertionError, match=r"naive 'half' scores 1\.000"):
        assert_sound(replace(exercise, naive={"half": right}), solution)
    with pytest.raises(AssertionError, match="naive 'half' fails"):
        assert_sound(replace(exercise, naive={"half": admit_all}), solution)


def test_a_failure_says_which_case_what_came_and_what_was_expected(exercise):
    report = check(admit_all, exercise)
    assert report.misconception.name == "all"
    lines = report.sentences()
    assert lines[0] == "You admit all that wait."
    assert "Case “room for two”: `admit(free=2, waiting=5)` returned 5, expected 2." in lines[-1]


def test_an_endless_loop_ends_and_is_named(exercise):
    report = check(endless, exercise)
    assert "longer than 0.3 s" in str(report) and len(report.failures) == 1
    assert "`admit(free=2, waiting=5)`" in str(report) and "(`time.sleep(0.001)`)" in str(report)


def test_an_error_in_the_solution_is_a_failure_and_not_ours(exercise):
    report = check(lambda free, waiting: free / 0, exercise)
    assert report.status == "failed"
    assert "with a ZeroDivisionError: division by zero" in report.sentences()[0]


def test_drawn_cases_are_the_same_everywhere_and_arguments_are_not_shared():
    def case(draw: random.Random) -> Case:
        items = [draw.random() for _ in range(3)]
        drawn.append(items)
        return Case.call("sorts", (items,), sorted(items))

    drawn: list[list[float]] = []

    def destructive(items):
        items.sort()
        return items

    exercise = Exercise("x.y", "t", "t", "f", (Case.call("empty", ([],), []),), ("a", "b", "c"),
                        random_case=case)  # fmt: skip
    exercise.drawn_cases()
    first = [list(each) for each in drawn]
    exercise.drawn_cases()
    assert first == drawn[len(first) :] and first[0] != first[1]
    assert check(destructive, exercise).status == "passed"
    assert first == drawn[: len(first)], "each case was given a copy"


def test_an_exercise_that_does_not_add_up_is_refused():
    case = Case.call("a", (1,), 1)
    with pytest.raises(ValueError, match="three hints"):
        Exercise("x.y", "t", "t", "f", (case,), ("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a score needs a naive rule"):
        Exercise("x.y", "t", "t", "f", (case,), ("a", "b", "c"), score=lambda one: Score(1, ""))


@pytest.mark.parametrize(
    ("share", "said"), [(0.9988, "99 %"), (1.0, "100 %"), (0.5, "50 %"), (1.12, "112 %, better")]
)
def test_no_rule_that_loses_to_the_solution_is_given_100_percent(share, said):
    assert _percent(share).startswith(said)


def test_a_score_beyond_the_worked_solutions_is_said_and_counts_as_full(labs, headless):
    def better(free, waiting):
        return min(free, waiting) + (free == 8)

    panel = Check("45a_admit", better, labs=labs)
    panel.run()
    assert panel.result.score.share == 9 / 8
    assert "Score 112 %, better than the worked solution: 8 places." in str(panel.result)
    entry = Progress().entries()["45a.admit"]
    assert (entry.best, entry.out_of) == (2, 2)
    raise_panel_errors()


def test_a_rule_that_breaks_where_it_is_scored_has_not_passed(exercise):
    report = check(lambda free, waiting: min(free, waiting) // (free < 8), exercise)
    assert report.status == "failed" and report.score is None
    assert (
        "Case “the scored workloads”: `admit(free=8, waiting=8)` stopped" in report.sentences()[0]
    )


def test_the_panel_draws_both_rules_also_a_wrong_one(labs, headless):
    panel = Check("45a_admit", admit_all, labs=labs)
    panel.run()
    assert panel.result.pictured.yours == (0, 1, 2, 3, 4, 5)
    assert panel.result.pictured.worked == (0, 1, 2, 3, 3, 3)
    assert panel.picture.widget in panel.results.children
    assert "differs from the worked solution at 2 of 6 places, first at number 5" in (
        panel.picture.shown.takeaway
    )
    lines = panel.picture.shown.figure.data
    assert {(line.name, line.line.dash, line.marker.symbol) for line in lines} == {
        ("yours", None, "circle"), ("worked solution", "dash", "x-thin"),
    }  # fmt: skip
    # What breaks has no picture, and an old one would be another rule's.
    panel = Check("45a_admit", lambda free, waiting: free / 0, labs=labs)
    panel.run()
    assert panel.picture.widget not in panel.results.children
    raise_panel_errors()


def test_the_panel_checks_hints_and_keeps_the_score(labs):
    panel = Check("45a_admit", right, labs=labs)
    panel.run_button.click()
    assert panel.wait(20)
    raise_panel_errors()
    assert "Passed" in panel.report.value and "✓" in panel.report.value
    entry = Progress().entries()["45a.admit"]
    assert (entry.best, entry.out_of, entry.kind) == (2, 2, "check")
    for number in (1, 2, 3):
        assert panel.hint_button.description == f"Hint {number} of 3"
        panel.hint_button.click()
        assert panel.hints.value.count("<li>") == number
    assert panel.hint_button.disabled


def test_after_the_worked_solution_nothing_is_scored(labs, headless):
    panel = Check("45a_admit", right, labs=labs)
    panel.solution_button.click()
    assert "return min(free, waiting)" in panel.solution_view.value
    panel.run()
    assert "no score" in panel.report.value and Progress().entries() == {}


def test_a_wrong_solution_is_no_error_of_the_chapter(labs, headless):
    panel = Check("45a_admit", admit_all, labs=labs)
    panel.run()
    raise_panel_errors()
    assert "Failed. You admit all" in panel.report.value
    assert Progress().entries()["45a.admit"].best == 0
    panel = Check("45a_admit", stub, labs=labs)
    panel.run()
    raise_panel_errors()
    assert panel.report.value.count("ot attempted") == 1
    assert Progress().entries()["45a.admit"].tries == 1


def test_the_solution_is_looked_up_at_every_press(labs, headless, monkeypatch):
    shell = SimpleNamespace(user_ns={"admit": stub})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    panel = Check("45a_admit", labs=labs)
    panel.run()
    assert panel.result.status == "not attempted"
    shell.user_ns["admit"] = right
    panel.run()
    assert panel.result.status == "passed"
    del shell.user_ns["admit"]
    panel.run_button.click()
    assert "run the cell that defines it" in panel.problem.value
    # An old success beside "run the cell" would be read as a success of what is written now.
    assert panel.report.value == "" and panel.results.children == (panel.report,)
    raise_panel_errors()


def test_an_exercise_that_is_not_there_is_named(labs):
    with pytest.raises(FileNotFoundError, match="there are: 45a_admit"):
        Check("45b_admit", labs=labs)
    (labs / "exercises" / "00_none.py").write_text("")
    with pytest.raises(ValueError, match="has no EXERCISE"):
        load_exercise("00_none", labs)


def test_a_task_shows_code_as_code_and_a_question_ends_without_a_full_stop(labs, headless):
    shown = Check("46_online_softmax").settings.children[0].value
    assert "<code>context</code>" in shown and "`" not in shown

    def rank(seat, limit):
        """A return is missing."""
        str(seat.found + limit)

    text = str(check(rank, load_exercise("44_longest_prefix")))
    assert "is a `return` missing?\n" in text
