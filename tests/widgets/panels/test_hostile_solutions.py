"""Solutions that break in unusual ways: each fails for the reason told, and does no harm."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from widgets.panels import Case, Exercise, Misconception, Picture, Score, check
from widgets.panels.exercises.returns import ANYTHING, WHOLE_NUMBER, WHOLE_NUMBERS


def exercise_of(returns, expected=6):
    case = Case.call("three", (3,), expected)
    return Exercise("x.y", "t", "t", "f", (case,), ("a", "b", "c"), ("n",), returns)


class NoReprExit:
    def __repr__(self):
        raise SystemExit


class NoIndex:
    def __init__(self, error):
        self.error = error

    def __index__(self):
        raise self.error


class NoTextError(Exception):
    def __str__(self):
        raise ValueError("no text")


def raises_without_a_text(n):
    raise NoTextError


@pytest.mark.parametrize(
    "solution, returns, kind, words",
    [
        (lambda n: NoReprExit(), WHOLE_NUMBER, "type", "without a repr: SystemExit"),
        (lambda n: NoIndex(SystemExit()), WHOLE_NUMBER, "raised", "exit() ends the program"),
        (lambda n: NoIndex(KeyError("mine")), WHOLE_NUMBER, "raised", "a KeyError: 'mine'"),
        (lambda n: (1 // 0 for _ in "a"), WHOLE_NUMBERS, "raised", "a ZeroDivisionError"),
        (lambda n: (sys.exit() for _ in "a"), WHOLE_NUMBERS, "raised", "exit() ends the program"),
        (lambda n: itertools.count(), WHOLE_NUMBERS, "type", "more than 100,000 elements"),
        (raises_without_a_text, WHOLE_NUMBER, "raised", "with a NoTextError: <without a text"),
    ],
)
def test_what_breaks_while_an_answer_is_read_is_told_with_the_call(solution, returns, kind, words):
    told = check(solution, exercise_of(returns)).told
    assert told is not None and told.kind == kind
    assert words in told.text and "`f(n=3)`" in told.text


@pytest.mark.parametrize("returns", [WHOLE_NUMBERS, ANYTHING])
def test_a_long_answer_is_shortened_in_the_message(returns):
    report = check(lambda n: list(range(90_000)), exercise_of(returns, expected=[1]))
    assert report.status == "failed" and len(str(report)) < 1000


def test_what_a_solution_does_to_the_output_ends_with_its_case(capsys):
    def silences(n):
        sys.stdout.writelines(["one\n", "two\n"])
        print("half a character: \ud800", file=sys.stderr)
        sys.stdout = sys.stderr = None
        return 0

    before = sys.stdout, sys.stderr
    report = check(silences, exercise_of(WHOLE_NUMBER))
    after = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = before
    assert after == before
    assert capsys.readouterr() == ("", "")
    assert "printed: one\ntwo\nhalf a character: ?" in str(report)


def slowly(n):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass
    return n


@pytest.mark.parametrize("where", ["a case", "the score", "a mistake", "the picture"])
def test_a_stop_is_obeyed_wherever_the_solution_is(where):
    """A scored workload may take ten times as long as a case: nobody waits for it to end."""
    begun = threading.Event()

    def busy(n):
        begun.set()
        return slowly(n)

    if where == "a case":
        exercise, solution = exercise_of(WHOLE_NUMBER), busy
    elif where == "the score":
        exercise, solution = exercise_of(WHOLE_NUMBER, 3), lambda n: busy(n) if n > 3 else n
        score = lambda asked: Score(asked(9), "")  # noqa: E731
        exercise = replace(exercise, score=score, naive={"none": solution})
    elif where == "a mistake":
        mistake = Misconception("slow", "It is slow.", (busy,))
        exercise = replace(exercise_of(WHOLE_NUMBER), misconceptions=(mistake,))
        solution = lambda n: n  # noqa: E731
    else:
        exercise, solution = exercise_of(WHOLE_NUMBER, 3), lambda n: busy(n) if n > 3 else n
        picture = Picture("t", "x", "y", lambda asked: [asked(9)])
        exercise = replace(exercise, picture=picture)
    exercise = replace(exercise, time_limit_s=20.0)
    start = time.monotonic()
    report = check(solution, exercise, should_stop=begun.is_set)
    assert time.monotonic() - start < 10, "far below the limits"
    assert report.status == "failed" and "(stopped early)" in report.covered
    assert report.misconception is None and report.score is None and report.pictured is None
    assert not [each for each in threading.enumerate() if each.name == "exercise"]


LATE = """
import threading, time
from widgets.panels.exercises.time_limit import TimeLimitError, limited

def nearly():
    end = time.thread_time() + 0.0195
    while time.thread_time() < end:
        pass

def spin():
    while True:
        pass

# Threads that wait for the interpreter end their work while they are told to end.
for _ in range(2):
    threading.Thread(target=spin, daemon=True).start()
latest = time.monotonic() + 6
while time.monotonic() < latest:
    try:
        limited(nearly, 0.02)
    except TimeLimitError:
        pass
print("quiet", flush=True)
import os
os._exit(0)
"""


@pytest.mark.slow
def test_a_thread_that_ends_while_it_is_told_to_writes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("quiet\n", "")
