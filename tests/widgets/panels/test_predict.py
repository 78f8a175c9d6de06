"""Nothing is seen before a commitment, nothing untouched is scored, and the spread is forgiving."""

from __future__ import annotations

import pytest

from tests.widgets.panels.tiny_runs import STATIC, tiny
from widgets.panels import Compare, Predict, Question, Reason, judge
from widgets.panels.predict import Guess, score
from widgets.progress import Progress
from widgets.workers import raise_panel_errors

REASONS = (
    Reason("Finished requests leave their places empty.", "Yes: nobody may join."),
    Reason("A batch lasts as long as its longest request.", "That is it.", correct=True),
    Reason("The model computes less.", "No: it computes the same tokens."),
)
STEPS = Question("steps", "What happens to the number of steps?", REASONS)
MEMORY = Question("peak_kv_bytes", "What happens to the KV bytes?", REASONS, largest_factor=16.0)


@pytest.fixture
def compare():
    # On the virtual clock, to be quick: what a prediction sees is the same.
    return made("virtual")


def made(clock):
    switch = {"scheduling.policy": "continuous"}
    return Compare(STATIC, switch, tiny(6), rounds=3, headline="steps", clock=clock)


@pytest.fixture
def predict(compare):
    return Predict(compare, [STEPS, MEMORY], key="45a.flip")


def hidden(panel):
    return panel.results not in panel._slot.children


def run(panel):
    panel.run()
    assert panel.wait(30)
    raise_panel_errors()


def test_run_all_computes_everything_and_reveals_nothing(compare, predict):
    run(compare)
    assert compare.result.rounds == 1
    assert hidden(compare)
    assert "Hidden until you commit" in compare._slot.children[0].value
    assert predict.feedback.value == "" and Progress().entries() == {}


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_commit_shows_and_scores_every_part_once(clock):
    compare = made(clock)
    predict = Predict(compare, [STEPS, MEMORY], key="45a.flip")
    run(compare)
    steps, memory = predict.forms
    truth = compare.result.metrics["steps"].verdict.ratio.median
    steps.direction.value = "goes down"
    steps.factor.value = 1 / truth
    steps.reason.value = 1
    memory.direction.value = "goes down"
    memory.factor.value = 8.0
    memory.reason.value = 2
    predict.commit_button.click()
    assert not hidden(compare)
    assert [one.points for one in predict.scores] == [3, 0]
    assert "You had 3 of 6" in predict.status.value
    assert "✓" in predict.feedback.value and "✗" in predict.feedback.value
    assert "it computes the same tokens" in predict.feedback.value
    assert "The reason: A batch lasts" in predict.feedback.value
    entry = Progress().entries()["45a.flip"]
    assert (entry.first, entry.out_of, entry.kind) == (3, 6, "predict")
    assert predict.commit_button.disabled and predict.show_button.disabled
    assert all(part.disabled for form in predict.forms for part in form.inputs)
    predict.commit()
    run(compare)
    assert Progress().entries()["45a.flip"].tries == 1


def test_what_was_left_untouched_is_never_scored(compare, predict):
    run(compare)
    predict.commit_button.click()
    assert hidden(compare) and "Choose something first" in predict.status.value
    predict.forms[0].direction.value = "goes down"
    predict.commit_button.click()
    assert not hidden(compare)
    first, second = predict.scores
    assert (first.direction, first.factor, first.reason) == (True, None, None)
    assert (second.direction, second.factor, second.reason) == (None, None, None)
    assert predict.feedback.value.count("not predicted, not scored") == 5
    assert Progress().entries()["45a.flip"].first == 1


def test_a_commitment_before_the_run_is_scored_when_the_run_is_done(compare, predict):
    predict.forms[0].direction.value = "goes up"
    predict.commit_button.click()
    assert predict.scores is None and "Now run it" in predict.status.value
    run(compare)
    assert predict.scores[0].direction is False
    assert "You had 0 of 6" in predict.status.value


def test_show_me_reveals_and_scores_nothing(compare, predict):
    run(compare)
    predict.forms[0].direction.value = "goes down"
    predict.show_button.click()
    assert not hidden(compare)
    assert predict.scores is None and Progress().entries() == {}
    predict.commit()
    assert predict.scores is None


def test_further_panels_are_hidden_too(compare):
    other = Compare(STATIC, {"seed": 1}, tiny(2), rounds=3)
    predict = Predict(compare, [STEPS], key="45a.flip", also=[other])
    assert hidden(other)
    predict.show_me()
    assert not hidden(other) and not hidden(compare)


def test_staying_the_same_needs_no_factor(predict):
    form = predict.forms[0]
    form.direction.value = "stays the same"
    assert form.factor.disabled
    assert form.guess.ratio == 1.0
    form.direction.value = "goes up"
    assert not form.factor.disabled and form.guess.factor is None
    form.factor.value = 2.0
    assert form.guess.ratio == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(
    ("guess", "direction", "factor"),
    [
        # Measured: 1.5x to 2.5x.
        (Guess("up", 1.5, None), True, True),
        (Guess("up", 2.5, None), True, True),
        (Guess("up", 3.0, None), True, True),
        (Guess("up", 4.0, None), True, False),
        (Guess("down", 2.0, None), False, False),
        (Guess("same", None, None), False, False),
        (Guess("up", None, None), True, None),
        (Guess(None, 2.0, None), None, None),
    ],
)
def test_inside_the_measured_spread_counts_as_right(guess, direction, factor):
    verdict = judge([1.0] * 5, [1.5, 2.0, 2.0, 2.2, 2.5], "lower")
    found = score(STEPS, guess, verdict)
    assert (found.direction, found.factor) == (direction, factor)


@pytest.mark.parametrize(
    ("guess", "direction", "factor"),
    [
        (Guess("same", None, None), True, True),
        # No difference was detectable, and this small one was within what was measured.
        (Guess("up", 1.05, None), True, True),
        (Guess("up", 2.0, None), False, False),
    ],
)
def test_no_difference_detectable_is_a_result_too(guess, direction, factor):
    verdict = judge([1.0] * 5, [0.95, 1.0, 1.02, 1.04, 1.1], "lower")
    found = score(STEPS, guess, verdict)
    assert (found.direction, found.factor) == (direction, factor)


def test_pairs_that_disagree_widely_call_no_direction_wrong():
    verdict = judge([1.0] * 5, [0.5, 0.9, 1.0, 1.2, 3.0], "lower")
    for direction in ("up", "down", "same"):
        assert score(STEPS, Guess(direction, None, None), verdict).direction is True
    calm = judge([1.0] * 5, [0.98, 0.99, 1.0, 1.01, 1.02], "lower")
    assert score(STEPS, Guess("up", None, None), calm).direction is False


def test_a_question_has_three_reasons_and_one_is_right():
    with pytest.raises(ValueError, match="three reasons"):
        Question("steps", "?", REASONS[:2])
    with pytest.raises(ValueError, match="one of them right"):
        Question("steps", "?", (REASONS[0], REASONS[0], REASONS[2]))


def test_every_input_has_a_label_and_headless_only_words_remain(predict, monkeypatch):
    assert all(part.description for form in predict.forms for part in form.inputs)
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    assert "number of steps" in predict._repr_mimebundle_()["text/plain"]
