"""The order of judgement: what broke, then what is wrong, and a mistake's name only where every
case goes exactly as with that mistake."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest

from widgets.panels import Case, Exercise, Misconception, Wrong, check
from widgets.panels.exercises.returns import (
    ANYTHING,
    NUMBER,
    TRUTH,
    WHOLE_NUMBER,
    WHOLE_NUMBERS,
    WrongTypeError,
    optional,
    same,
)
from widgets.panels.exercises.time_limit import TimeLimitError, limit_s, limited


def exercise_of(*cases: Case, **fields) -> Exercise:
    fields = {"parameters": ("n",), "returns": WHOLE_NUMBER, **fields}
    return Exercise("x.y", "t", "t", "f", cases, ("a", "b", "c"), **fields)


def test_a_mistake_is_named_only_where_every_case_goes_as_with_it():
    cases = [Case.call(f"case {n}", (n,), 2 * n) for n in range(5)]
    double = Misconception("plus two", "You add two.", (lambda n: n + 2,))
    exercise = exercise_of(*cases, misconceptions=(double,))
    assert check(lambda n: n + 2, exercise).misconception is double
    # The same in all but one of those that fail.
    found = check(lambda n: n + 2 if n != 3 else 7, exercise)
    assert found.misconception is None and "case 0" in str(found)
    # The same in the one case that fails, but the mistake would have failed others, too.
    assert check(lambda n: 2 * n if n else 2, exercise).misconception is None
    # An exception says more than any guess, also where all else is the same.
    found = check(lambda n: n + 2 if n != 3 else [][n], exercise)
    assert found.misconception is None
    assert found.sentences()[0].startswith("Case “case 3”: `f(n=3)` stopped in line")
    found = check(lambda n: n + 2 if n != 3 else "5", exercise)
    assert found.misconception is None
    assert found.sentences()[0].startswith(
        "Case “case 3”: `f(n=3)` returned the text '5', expected a"
    )


def test_a_mistake_is_compared_answer_by_answer_where_a_case_asks_often():
    def walks(solution):
        place = 0
        for _ in range(5):
            place += solution(place)
        if place != 5:
            raise Wrong(f"it ended at {place}")

    slow = Misconception("slow", "You stop.", (lambda n: min(1, 3 - n),))
    exercise = exercise_of(Case("a walk", walks), misconceptions=(slow,))
    assert check(lambda n: 1 if n < 3 else 0, exercise).misconception is slow
    # It ends at the same place, by another way.
    assert check(lambda n: 3 if n == 0 else 0, exercise).misconception is None


def test_an_error_that_an_engine_catches_on_its_way_is_still_told():
    def forgiving(solution):
        with contextlib.suppress(Exception):
            solution(1)
        with contextlib.suppress(Exception):
            solution(2)

    report = check(lambda n: n / 0, exercise_of(Case("an engine", forgiving)))
    assert report.status == "failed" and "`f(n=1)` stopped" in report.sentences()[0]


def test_what_the_case_itself_cannot_bear_is_told_as_such():
    def fragile(solution):
        return [0, 1][solution(1)]

    report = check(lambda n: 5, exercise_of(Case("a list", fragile)))
    assert "the engine refused the answer with IndexError" in report.sentences()[0]


def test_what_a_solution_prints_is_shown_with_its_case_and_kept_short(capsys):
    def chatty(n):
        print("here", n)
        if n == 1:
            print("y" * 100_000)
        return 0

    report = check(chatty, exercise_of(Case.call("zero", (0,), 0), Case.call("one", (1,), 1)))
    assert capsys.readouterr().out == ""
    told = report.sentences()[-1]
    assert told.startswith("In this case your code printed: here 1")
    assert "more characters)" in told and len(told) < 2200


def test_floats_are_compared_with_a_tolerance_that_is_said():
    exercise = exercise_of(Case.call("third", (3,), 1 / 3, 1e-3), returns=ANYTHING)
    assert check(lambda n: 0.33334, exercise).status == "passed"
    assert "expected 0.3333333333333333 (within 0.001)" in str(check(lambda n: 0.34, exercise))
    assert same([1.0, (2.0,)], (1.0 + 1e-12, [2.0]), 1e-9) and not same([1.0], [1.0, 2.0], 1e-9)
    assert same(float("nan"), float("nan"), 1e-9) and not same(1.0, "1.0", 1e-9)


UNSTOPPABLE = """
import os, time
from widgets.panels import Case, Exercise, check

def stubborn(n):
    while True:
        try:
            time.sleep(0.001)
        except BaseException:
            pass

cases = (Case.call("one", (1,), 1), Case.call("two", (2,), 2))
exercise = Exercise("x.y", "t", "t", "f", cases, ("a", "b", "c"), parameters=("n",),
                    time_limit_s=0.1)
print(check(stubborn, exercise))
print(check(lambda n: n, exercise), flush=True)
os._exit(0)
"""


def test_a_loop_that_cannot_be_stopped_says_restart_and_no_second_one_is_started():
    done = subprocess.run(
        [sys.executable, "-c", UNSTOPPABLE], capture_output=True, text=True, timeout=120, check=True
    )
    first, second = done.stdout.split("0 of 1 cases passed", 2)[:2]
    assert "took longer than 0.1 s and cannot be stopped from here: restart the kernel" in first
    assert "an endless loop of an earlier check still runs" in second


def test_a_thread_that_waits_for_a_busy_machine_is_not_cut_short():
    assert limited(lambda: time.sleep(0.5) or "done", 0.2) == "done"
    with pytest.raises(TimeLimitError, match=r"longer than 0\.05 s"):
        limited(lambda: time.sleep(0.8), 0.05)


def test_the_limit_is_known_to_what_runs_under_it():
    assert limited(limit_s, 3.0) == 3.0 and limit_s() is None


def test_a_case_may_give_the_same_list_twice():
    def shares(solution):
        items = [3, 1, 2]
        if [solution(items), solution(items)] != [3, 3]:
            raise Wrong("its answers differ")

    def spoils(n):
        answer = len(n)
        n.clear()
        return answer

    assert check(spoils, exercise_of(Case("a list", shares))).status == "passed"


@pytest.mark.parametrize(
    "returns, answer, words",
    [
        (WHOLE_NUMBER, True, "returned True, expected a whole number: is it the result of a comp"),
        (WHOLE_NUMBER, np.True_, "returned True, expected a whole number: is it the result of a"),
        (WHOLE_NUMBER, 3.0, "returned the float 3.0, expected a whole number: `//` divides whole"),
        (WHOLE_NUMBER, (3,), "returned a tuple, (3,), expected a whole number: is there a comma"),
        (NUMBER, False, "returned False, expected a number: is it the result of a comparison?"),
        (NUMBER, "1", "returned the text '1', expected a number: a number has no quotes"),
        (TRUTH, 1, "returned the whole number 1, expected True or False"),
        (WHOLE_NUMBERS, [1, 2.5], "expected a list of whole numbers: element 1 is the float 2.5"),
        (WHOLE_NUMBERS, "12", "returned the text '12', expected a list of whole numbers"),
        (optional(WHOLE_NUMBER), 0.5, "returned the float 0.5, expected a whole number or None"),
    ],
)
def test_an_answer_that_cannot_be_used_is_named_with_what_is_expected(returns, answer, words):
    with pytest.raises(WrongTypeError) as wrong:
        returns.read(answer)
    assert words in str(wrong.value)


@pytest.mark.parametrize(
    "returns, answer, read",
    [
        (WHOLE_NUMBER, np.int32(7), 7),
        (NUMBER, np.float32(0.5), 0.5),
        (NUMBER, 3, 3.0),
        (TRUTH, np.False_, False),
        (WHOLE_NUMBERS, np.array([1, 2]), [1, 2]),
        (WHOLE_NUMBERS, {4}, [4]),
        (optional(WHOLE_NUMBER), None, None),
    ],
)
def test_numbers_of_numpy_count_as_numbers(returns, answer, read):
    found = returns.read(answer)
    assert found == read and type(found) is type(read)


def test_a_mistake_that_takes_longer_than_the_limit_is_still_compared():
    def slow(n):
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        return n + 2

    double = Misconception("double", "You add two.", (slow,))
    exercise = exercise_of(Case.call("three", (3,), 6), misconceptions=(double,), time_limit_s=0.1)
    assert check(lambda n: n + 2, exercise).misconception is double
    told = check(slow, exercise).told
    assert told is not None and told.kind == "time", "the reader's own limit stays"
