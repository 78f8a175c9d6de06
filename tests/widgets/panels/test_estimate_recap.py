"""One number within a factor of two, and choices with feedback for every answer."""

from __future__ import annotations

import pytest

from tests.widgets.panels.tiny_runs import BASE, tiny
from widgets.panels import Answer, Choice, Compare, Estimate, Ledger, Recap
from widgets.panels.estimate import parse_number
from widgets.progress import Progress


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8192", "bytes", 8192),
        ("8,192 bytes", "bytes", 8192),
        (" 8 KiB ", "bytes", 8192),
        ("8kB", "bytes", 8000),
        ("1.5 MB", "bytes", 1.5e6),
        ("8e3", "", 8000),
        (".5", "", 0.5),
        ("3 ms", "s", 0.003),
        ("40 %", "", 0.4),
        ("10x", "", 10),
        ("12 steps", "steps", 12),
        ("3k", "steps", 3000),
        ("2 GFLOP", "FLOP", 2e9),
    ],
)
def test_numbers_are_read_as_people_type_them(text, unit, value):
    assert parse_number(text, unit) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "many", "0", "-3", "8 parsecs", "1.2.3", "3 ms"])
def test_what_is_no_number_gets_a_sentence(text):
    with pytest.raises(ValueError, match=r"Type|type|unit"):
        parse_number(text, "bytes")


@pytest.mark.parametrize(
    ("typed", "right"), [("8 KiB", True), ("4096", True), ("16384", True), ("4000", False)]
)
def test_within_a_factor_of_two_is_right(typed, right):
    estimate = Estimate("Bytes per token?", 8192, key="00.bytes", unit="bytes",
                        explain="Two tensors, eight layers.")  # fmt: skip
    assert "8.19" not in estimate.feedback.value
    estimate.input.value = typed
    estimate.check_button.click()
    assert estimate.right is right
    assert "8.19 kB" in estimate.feedback.value and "Two tensors" in estimate.feedback.value
    assert Progress().entries()["00.bytes"].first == float(right)
    assert estimate.input.disabled
    estimate.guess("8192")
    assert Progress().entries()["00.bytes"].tries == 1


def test_nonsense_is_answered_and_may_be_tried_again():
    estimate = Estimate("How many steps?", 10, key="00.steps", unit="steps")
    estimate.check_button.click()
    assert "Give a number first" in estimate.feedback.value
    estimate.guess("lots")
    assert "is not a number" in estimate.feedback.value and not estimate.done
    estimate.guess("11")
    assert estimate.right


def test_show_me_gives_the_value_and_no_score():
    estimate = Estimate("How many steps?", lambda: 10, key="00.steps", unit="steps")
    estimate.show_button.click()
    assert "10 steps" in estimate.feedback.value
    estimate.guess("10")
    assert estimate.right is None and Progress().entries() == {}


@pytest.mark.parametrize(("picked", "right"), [(10, True), (3, False), (30, False)])
def test_choices_take_the_nearest(picked, right):
    estimate = Estimate("How much slower?", 12.0, key="00.slower", unit="x",
                        choices=[1, 3, 10, 30])  # fmt: skip
    estimate.check_button.click()
    assert not estimate.done
    estimate.guess(picked)
    assert estimate.right is right
    assert "12x" in estimate.feedback.value


def test_panels_stay_hidden_and_a_missing_run_is_named(headless):
    panel = Compare(BASE, {"seed": 1}, tiny(2), rounds=3)
    steps = Estimate("Steps?", lambda: panel.result.counts["on"].steps, key="00.steps",
                     panels=[panel])  # fmt: skip
    assert panel.masked
    steps.guess("6")
    assert "press “Run” first" in steps.feedback.value and not steps.done
    panel.run()
    steps.guess("6")
    assert steps.right and not panel.masked


def test_where_there_is_no_such_value_nothing_is_scored():
    estimate = Estimate("Where do they cross?", lambda: None, key="00.cross")
    estimate.guess("6")
    assert "no such value" in estimate.feedback.value and estimate.done
    assert Progress().entries() == {}


LEDGER = Ledger("tokens identical", "lengths vary", "lengths equal", "5 rounds on this machine")


def choice(text: str = "Which?") -> Choice:
    return Choice(
        text,
        (
            Answer("this", "Yes.", correct=True),
            Answer("that", "That confuses space with time."),
            Answer("neither", "One of them."),
        ),
    )


def test_every_distractor_has_its_feedback_and_the_first_answer_counts():
    recap = Recap([choice(), choice("And?")], LEDGER, key="45a.recap")
    first, second = recap.items
    first.button.click()
    assert "Choose an answer first" in first.feedback.value
    first.input.value = 1
    first.button.click()
    assert "confuses space with time" in first.feedback.value and "✗" in first.feedback.value
    assert "1 to go" in recap.status.value and recap.ledger_view.value == ""
    first.input.value = 0
    first.button.click()
    assert "✓" in first.feedback.value
    recap.answer(1, 0)
    assert second.first is True
    assert "1 of 2 right" in recap.status.value
    assert "lengths vary" in recap.ledger_view.value
    recap.answer(1, 2)
    entry = Progress().entries()["45a.recap"]
    assert (entry.first, entry.tries) == (1, 1)
    assert all(item.input.description and item.button.description for item in recap.items)


def test_the_ledger_shows_on_demand_and_headless_as_words(monkeypatch):
    recap = Recap([choice()], LEDGER, key="45a.recap")
    recap.ledger_button.click()
    assert "tokens identical" in recap.ledger_view.value
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    assert "where it loses: lengths equal" in recap._repr_mimebundle_()["text/plain"]


def test_a_choice_without_feedback_or_with_two_right_answers_is_refused():
    with pytest.raises(ValueError, match="feedback"):
        Choice("?", (Answer("a", "", correct=True), Answer("b", "x")))
    with pytest.raises(ValueError, match="one of them right"):
        Choice("?", (Answer("a", "x", correct=True), Answer("b", "x", correct=True)))


def test_a_guess_during_the_run_is_noted_and_scored_at_its_end():
    race = Compare(BASE, {"scheduling.policy": "static"}, tiny(6), rounds=3, headline="steps")
    # Listeners may ask for the result although the run has not ended: it is theirs to hear.
    guess = Estimate("Ratio of steps?", lambda: race.result.verdict.ratio.median,
                     key="00.steps", unit="x", choices=(1, 3, 10), panels=[race])  # fmt: skip
    race.run()
    guess.guess(1)
    assert guess.done and not race.masked
    assert race.wait(60)
    assert race.result.verdict.ratio.median == pytest.approx(3, rel=2)
    assert guess.right is not None and Progress().entries()["00.steps"].tries == 1
    race.run()
    assert race.wait(60)
    assert Progress().entries()["00.steps"].tries == 1
