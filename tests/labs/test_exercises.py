"""Exercises: a stub is green, the worked solution passes, wrong ideas meet their own messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from widgets.panels.exercise import (
    assert_sound,
    check,
    labs_directory,
    load_exercise,
    load_solution,
)

NAMES = sorted(path.stem for path in Path(labs_directory(), "exercises").glob("[0-9]*.py"))


def stub(*arguments):
    """Nothing yet."""
    ...


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted(name):
    assert check(stub, load_exercise(name)).status == "not attempted"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_and_each_wrong_idea_is_named(name):
    exercise = load_exercise(name)
    solution, _ = load_solution(name, exercise)
    assert_sound(exercise, solution)
    assert check(solution, exercise).score.share >= 0.999


@pytest.mark.slow
def test_reserving_everybodys_largest_size_is_safe_and_scores_less():
    def reserve(newcomer, running, total_pages, page_tokens):
        seats = [*running, newcomer]
        return sum(-(-(s.tokens + s.left - 1) // page_tokens) for s in seats) <= total_pages

    report = check(reserve, load_exercise("45a_admission"))
    assert report.status == "passed" and 0.5 < report.score.share < 0.9
