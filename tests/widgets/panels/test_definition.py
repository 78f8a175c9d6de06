"""What is graded is what the reader wrote last, in a real shell: never an older function that a
failed cell has left behind."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

from widgets.panels import Case, Check, Exercise
from widgets.panels.base import Refusal
from widgets.panels.exercises.definition import stale

GOOD = "def double(n):\n    return 2 * n"
WRONG = "def double(n):\n    return n"
OTHER = "def other(n):\n    return 2 * n"
SYNTAX = "def double(n)\n    return 2 * n"


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    yield shell
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def run(shell, *cells):
    for cell in cells:
        shell.run_cell(cell, store_history=True)


def panel(shell):
    case = Case.call("three", (3,), 6)
    return Check(Exercise("x.y", "t", "t", "double", (case,), ("a", "b", "c"), ("n",)))


def test_a_cell_that_runs_is_graded_and_again_after_every_change(shell, headless):
    check = panel(shell)
    for cell, status in ((GOOD, "passed"), (WRONG, "failed"), (GOOD, "passed")):
        run(shell, cell, "double(3)", "# double is mentioned here, (and not closed", "x = double(4")
        check.run()
        assert check.result.status == status


@pytest.mark.parametrize(
    "cell, words",
    [
        (SYNTAX, "In [2], has a syntax error in line 1 (`def double(n)`): expected ':'"),
        ("def double(n):\nreturn 2 * n", "has a syntax error in line 2 (`return 2 * n`): expected"),
        ("def double(n):\n    return 2 * (n", "has a syntax error in line 2"),
        ("%%time\ndef other(n):\n    return 1\n\n1 / 0\n" + WRONG, ""),
        (f"import no_such_module\n{WRONG}", "In [2], stopped before it came to the definition"),
        (f"1 / 0\n{WRONG}", "In [2], stopped before it came to the definition"),
        ("double = lambda n: 2 * (n", "has a syntax error"),
    ],
)
def test_after_a_cell_that_fails_the_function_before_it_is_not_graded(shell, cell, words, headless):
    run(shell, GOOD, cell)
    assert shell.user_ns["double"](3) == 6, "the old one is still there"
    check = panel(shell)
    if not words:  # What a magic runs is its own affair.
        check.run()
        return
    with pytest.raises(Refusal) as refused:
        check.run()
    assert words in str(refused.value) and "Nothing was checked" in str(refused.value)
    check.pressed_run()
    assert "Nothing was checked" in check.problem.value
    run(shell, GOOD)
    check.run()
    assert check.result.status == "passed"


def test_without_any_definition_the_first_error_is_told_too(shell, headless):
    run(shell, SYNTAX)
    with pytest.raises(Refusal, match="has a syntax error in line 1"):
        panel(shell).run()


@pytest.mark.parametrize(
    "cell",
    [
        f"{GOOD}\n\ndouble(3)",
        f"{GOOD}\n\n1 / 0",
        f"import functools\n\n@functools.cache\n{GOOD}",
        f"%%time\n{GOOD}",
        f"%time\n{GOOD}",
        "double = lambda n: 2 * n",
        "from operator import add\ndouble = lambda n: add(n, n)",
        f"# a comment\n\n{GOOD}  # and one more",
        "class Doubles:\n    def double(self, n):\n        return n\n\ndouble = lambda n: 2 * n",
        # Ways to give the name another function that are no plain definition or assignment.
        "if True:\n    def double(n):\n        return 2 * n",
        f"{WRONG}\n\nif True:\n    def double(n):\n        return 2 * n",
        "try:\n    def double(n):\n        return 2 * n\nexcept ValueError:\n    pass",
        f"{OTHER}\n\ndouble, more = other, 2",
        f"from typing import Any\n\n{OTHER}\n\ndouble: Any = other",
        f"{OTHER}\n\nfor double in (other,):\n    pass",
        f"{OTHER}\n\n(double := other)",
        f"{OTHER}\n\ndef sets():\n    global double\n    double = other\n\nsets()",
        "from statistics import mean as double\nstored, double = double, lambda n: 2 * n",
        f"%%capture\n{GOOD}",
        f"def timed(f):\n    def inner(n):\n        return f(n)\n    return inner\n\n"
        f"@timed\n{GOOD}",
    ],
)
def test_no_cell_that_defines_the_function_is_taken_for_a_failed_one(shell, cell):
    run(shell, WRONG, cell)
    assert stale("double", shell) == ""
    assert shell.user_ns["double"](3) == 6


def test_an_import_under_the_name_is_taken_for_what_it_is(shell):
    run(shell, GOOD, "from textwrap import dedent as double")
    assert stale("double", shell) == ""


def test_a_name_that_only_stands_in_a_function_or_class_hides_no_failed_cell(shell):
    inside = "class Doubles:\n    def double(self):\n        return 1\n\ndef f():\n    double = 3"
    run(shell, WRONG, f"1 / 0\n{GOOD}", inside)
    assert "In [2], stopped before it came to the definition" in stale("double", shell)


def test_text_that_only_mentions_the_name_is_no_definition(shell):
    run(shell, GOOD, 'text = """\ndef double(n):\n    return n\n"""', "double(3", "[double")
    assert stale("double", shell) == ""
