"""One number within a factor of two, choices with feedback, and answers that outlive a kernel."""

from __future__ import annotations

import pytest

from tests.widgets.panels.tiny_runs import BASE, tiny
from widgets.panels import Compare, Estimate, Recap
from widgets.panels.base import NotYetError, without_waiting
from widgets.panels.questions.estimate import parse_number
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Answer, Choice, Closing, Ledger, Quantity, fingerprint
from widgets.scoring.scores import Chosen, Commit


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
        ("1,234,567", "", 1234567),
        ("10_000.5", "", 10000.5),
        ("8 192", "", 8192),
    ],
)
def test_numbers_are_read_as_people_type_them(text, unit, value):
    assert parse_number(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "many", "0", "-3", "8 parsecs", "1.2.3", "3 ms", "1e400", "9" * 400, "1e308 TiB",
     "1e-323 %", "1,5", "1,50 kB", "1000,000", "8,,192", "inf", "nan"])  # fmt: skip
def test_what_is_no_number_gets_a_sentence(text):
    with pytest.raises(ValueError, match=r"Type|type|unit"):
        parse_number(text, "bytes")


def estimate(text, given, *, key="00.steps", panels=(), **rest):
    return Estimate(Quantity(text, key=key, **rest), given, panels=panels)


@pytest.mark.parametrize(
    ("typed", "right"), [("8 KiB", True), ("4096", True), ("16384", True), ("4000", False)]
)
def test_within_a_factor_of_two_is_right(typed, right):
    panel = estimate("Bytes per token?", 8192, key="00.bytes", unit="bytes",
                     explain="Two tensors, eight layers.")  # fmt: skip
    assert "8.19" not in panel.feedback.value
    panel.input.value = typed
    panel.check_button.click()
    assert panel.right is right
    assert "Two tensors" in panel.feedback.value
    assert ("8.19 kB" in panel.feedback.value) is right
    assert Progress().entries()["00.bytes"].first == float(right)
    assert panel.input.disabled is right, "a wrong answer may be tried again"


def test_another_try_is_answered_and_the_first_one_counts():
    panel = estimate("Bytes per token?", 8192, key="00.bytes", unit="bytes")
    panel.guess("1024")
    assert "it is 8x higher than 1.02 kB" in panel.feedback.value
    assert "the first answer counts" in panel.feedback.value
    panel.guess("81920")
    assert "it is 10x lower than 81.9 kB" in panel.feedback.value
    panel.guess("8 KiB")
    assert "Right: it is 8.19 kB; you said 8.19 kB, exactly." in panel.feedback.value
    assert "The first answer counts." in panel.feedback.value and panel.input.disabled
    assert panel.right is False
    entry = Progress().entries()["00.bytes"]
    assert (entry.first, entry.best, entry.tries) == (0, 0, 1)


def test_a_wrong_answer_may_be_followed_by_show_me():
    panel = estimate("How many steps?", 10, unit="steps")
    panel.guess("1")
    panel.show_button.click()
    assert "It is 10 steps" in panel.feedback.value and panel.show_button.disabled
    assert Progress().entries()["00.steps"].first == 0


def test_nonsense_is_answered_and_may_be_tried_again():
    panel = estimate("How many steps?", 10, unit="steps")
    panel.check_button.click()
    assert "Give a number first" in panel.feedback.value
    panel.guess("lots")
    assert "is not a number" in panel.feedback.value and not panel.done
    for too_small in ("0", "-5"):
        panel.guess(too_small)
        assert "a number above 0" in panel.feedback.value and not panel.done
    panel.guess("11")
    assert panel.right


def test_show_me_gives_the_value_and_no_score():
    panel = estimate("How many steps?", lambda: 10, unit="steps")
    panel.show_button.click()
    assert "10 steps" in panel.feedback.value
    panel.guess("10")
    assert panel.right is None and Progress().entries() == {}


@pytest.mark.parametrize(("picked", "right"), [(10, True), (3, False), (30, False)])
def test_choices_take_the_nearest(picked, right):
    panel = estimate("How much slower?", 12.0, unit="x", choices=(1, 3, 10, 30))
    panel.check_button.click()
    assert not panel.done
    panel.guess(picked)
    assert panel.right is right
    words = {10: "12x", 3: "4x higher than 3x", 30: "2.5x lower than 30x"}
    assert words[picked] in panel.feedback.value


def test_an_expression_takes_its_names_when_the_cell_runs():
    names = {"steps": 10, "COUNT": 1234}
    panel = estimate("Of {COUNT:,} steps?", names, truth="steps * 2")
    names["steps"] = 1000
    assert "Of 1,234 steps?" in repr(panel)
    panel.guess("20")
    assert panel.right
    with pytest.raises(NameError, match="needs steps"):
        estimate("?", {}, truth="steps * 2")


def test_panels_stay_hidden_and_a_missing_run_is_named():
    panel = Compare(BASE, {"seed": 1}, tiny(2), rounds=1, clock="virtual")
    steps = estimate("Steps?", lambda: panel.result.counts["on"].steps, panels=[panel])
    assert panel.masked
    steps.guess("6")
    assert "press “Run” first" in steps.feedback.value and not steps.done and panel.masked
    panel.run()
    assert not panel.worker.busy and "Runs when you have given your estimate" in panel.status.value
    steps.guess("6")
    assert not panel.masked and panel.wait(30)
    assert steps.right


def two_panels():
    return [
        Compare(BASE, {"scheduling.policy": "static"}, tiny(6), rounds=1, title=title,
                headline="steps", clock="virtual")
        for title in ("first", "second")
    ]  # fmt: skip


TRUTH = "first.result.counts['on'].steps"


def started(panels):
    first, second = panels
    asked = estimate("Steps?", {"first": first}, truth=TRUTH, panels=panels)
    second.run()
    first.run()
    return asked


def test_an_estimate_starts_the_runs_behind_it_in_order():
    panels = two_panels()
    order = []
    for number, panel in enumerate(panels):
        panel.on_result(lambda result, number=number: order.append(number))
    asked = started(panels)
    assert order == [] and all(panel.under_way for panel in panels)
    asked.guess("6")
    assert all(panel.wait(30) for panel in panels)
    assert order == [0, 1]
    assert asked.right is (3 <= panels[0].result.counts["on"].steps <= 12)
    assert Progress().entries()["00.steps"].tries == 1


def test_an_estimate_survives_a_restart_and_its_runs_start():
    panels = two_panels()
    started(panels).guess("6")
    assert all(panel.wait(30) for panel in panels)
    entry = Progress().entries()["00.steps"]
    panels = two_panels()
    asked = started(panels)
    assert asked.done and asked.input.value == "6" and not any(panel.masked for panel in panels)
    assert all(panel.wait(30) and panel.last is not None for panel in panels)
    assert asked.right is bool(entry.first)
    assert Progress().entries()["00.steps"] == entry, "a restart is not another try"


def test_show_me_starts_the_runs_and_survives_a_restart():
    panels = two_panels()
    started(panels).show_me()
    assert all(panel.wait(30) for panel in panels)
    panels = two_panels()
    asked = started(panels)
    assert all(panel.wait(30) and not panel.masked for panel in panels)
    assert asked.shown and "It is" in asked.feedback.value and Progress().entries() == {}


def test_a_value_still_to_come_is_not_waited_for():
    panel, _ = two_panels()
    panel.mask("me", "later", "you say so")
    panel.run()
    with without_waiting(), pytest.raises(NotYetError, match="Runs when you say so"):
        _ = panel.result
    panel.unmask("me")
    assert panel.wait(30) and panel.result is panel.last


def test_where_there_is_no_such_value_nothing_is_scored():
    panel = estimate("Where do they cross?", lambda: None, key="00.cross")
    panel.guess("6")
    assert "no such value" in panel.feedback.value and panel.done
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


def recap_of(*choices):
    return Recap(Closing(choices, LEDGER, key="45a.recap"))


def test_answers_survive_a_restart_and_the_first_ones_count():
    first = recap_of(choice(), choice("And?"))
    first.answer(0, 1)
    again = recap_of(choice(), choice("And?"))
    assert again.items[0].input.value == 1 and "✗" in again.items[0].feedback.value
    assert again.items[1].input.value is None and "1 to go" in again.status.value
    again.answer(0, 0)
    again.answer(1, 0)
    assert Progress().entries()["45a.recap"].first == 1
    third = recap_of(choice(), choice("And?"))
    assert "1 of 2 right" in third.status.value and "lengths vary" in third.ledger_view.value
    assert Progress().entries()["45a.recap"].tries == 1
    assert recap_of(choice("Another?"), choice("And?")).items[0].input.value is None


def test_an_answer_that_is_no_longer_offered_is_asked_again():
    asked = recap_of(choice(), choice("And?"))
    offered = len(asked.items[0].choice.answers)
    kept = (Chosen(option=offered), Chosen(option=offered - 1))
    Progress().keep(Commit(asked.key, fingerprint(asked.asked), kept))
    again = recap_of(choice(), choice("And?"))
    assert [item.first for item in again.items] == [None, offered - 1]


def test_every_distractor_has_its_feedback_and_the_first_answer_counts():
    recap = recap_of(choice(), choice("And?"))
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
    assert second.first == 0 and second.right
    assert "1 of 2 right" in recap.status.value
    assert "lengths vary" in recap.ledger_view.value
    recap.answer(1, 2)
    entry = Progress().entries()["45a.recap"]
    assert (entry.first, entry.tries) == (1, 1)
    assert all(item.input.description and item.button.description for item in recap.items)


def test_the_ledger_shows_on_demand_and_headless_as_words(monkeypatch):
    recap = recap_of(choice())
    recap.ledger_button.click()
    assert "tokens identical" in recap.ledger_view.value
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    assert "where it loses: lengths equal" in recap._repr_mimebundle_()["text/plain"]


def test_a_choice_without_feedback_or_with_two_right_answers_is_refused():
    with pytest.raises(ValueError, match="feedback"):
        Choice("?", (Answer("a", "", correct=True), Answer("b", "x")))
    with pytest.raises(ValueError, match="one of them with correct"):
        Choice("?", (Answer("a", "x", correct=True), Answer("b", "x", correct=True)))


def test_a_guess_during_the_run_is_noted_and_scored_at_its_end():
    race = Compare(BASE, {"scheduling.policy": "static"}, tiny(6), rounds=3, headline="steps")
    # Listeners may ask for the result although the run has not ended: it is theirs to hear.
    guess = estimate("Ratio of steps?", lambda: race.result.verdict.ratio.median, unit="x",
                     choices=(1, 3, 10), panels=[race])  # fmt: skip
    race.run()
    guess.guess(1)
    assert guess.done and not race.masked
    assert race.wait(60)
    assert race.result.verdict.ratio.median == pytest.approx(3, rel=2)
    assert guess.right is not None and Progress().entries()["00.steps"].tries == 1
    race.run()
    assert race.wait(60)
    assert Progress().entries()["00.steps"].tries == 1
