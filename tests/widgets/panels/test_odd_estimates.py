"""Estimates that are odd, late or asked twice: none costs a score, and none is counted twice."""

from __future__ import annotations

import pytest

from widgets.panels import Estimate
from widgets.panels.base import NotYetError
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Quantity, fingerprint
from widgets.scoring.scores import Chosen, Commit


def estimate(text, given, *, key="00.steps", **rest):
    return Estimate(Quantity(text, key=key, **rest), given)


def test_a_number_beyond_all_floats_costs_no_scores():
    Progress().record("45b.recap", "recap", 3, 5)
    panel = estimate("Bytes per token?", 8192, key="00.bytes", unit="bytes")
    for typed in ("1e400", "1e-400"):
        panel.guess(typed)
        assert panel.first is None and "Type a number" in panel.feedback.value
    with pytest.raises(ValueError, match="does not add up"):
        Progress().keep(Commit("00.bytes", "", (Chosen(number=float("inf")),)))
    assert Progress().entries()["45b.recap"].first == 3 and Progress().notice == ""


@pytest.mark.parametrize("truth", [0.0, -1.0, float("nan"), float("inf")])
def test_a_value_that_has_no_factor_is_not_scored(truth):
    panel = estimate("How many?", truth)
    panel.guess("3")
    assert "no such value" in panel.feedback.value and Progress().entries() == {}


def test_an_answer_that_waits_for_the_run_is_not_replaced():
    def truth():
        if waits:
            raise NotYetError("the run goes on")
        return 8192

    waits = [True]
    panel = estimate("Bytes?", truth, unit="bytes")
    panel.guess("8192")
    panel.guess("1")
    waits.clear()
    panel._settle()
    assert panel.right is True and "Right" in panel.feedback.value


def test_a_long_answer_is_the_same_after_a_restart():
    """At six digits it would be outside what it was inside of."""
    estimate("Bytes?", 2 * 1234564, unit="bytes", key="00.long").guess("1234564")
    panel = estimate("Bytes?", 2 * 1234564, unit="bytes", key="00.long")
    assert panel.right is True and "Right" in panel.feedback.value


def test_the_nearest_choice_is_nearest_by_factor():
    panel = estimate("How many?", 4.0, choices=(1.0, 10.0))
    panel.guess(10.0)
    assert panel.right is True, "4 is 2.5x below 10 and 4x above 1"


def test_two_panels_of_one_cell_score_one_answer_once():
    def truth():
        if waits:
            raise NotYetError("the run goes on")
        return 8.0

    waits = [True]
    first = estimate("How many?", truth)
    first.guess("8")
    second = estimate("How many?", truth)
    waits.clear()
    first._settle()
    second._settle()
    assert first.right is second.right is True
    assert Progress().entries()["00.steps"].tries == 1


def test_an_answer_that_is_no_choice_is_asked_again():
    asked = Quantity("How many?", key="00.steps", choices=(1.0, 10.0))
    Progress().keep(Commit("00.steps", fingerprint(asked), (Chosen(number=5.0),)))
    panel = Estimate(asked, 8.0)
    assert panel.first is None and panel.input.value is None
