"""Nothing is seen or run before a commitment, nothing untouched is scored, nor is noise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.widgets.panels.tiny_runs import STATIC, tiny
from widgets.panels import Compare, Predict, judge
from widgets.panels.questions.feedback import _factor
from widgets.panels.questions.guess import Guess, score
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Prediction, Question, Reason, fingerprint
from widgets.scoring.scores import Chosen, Commit
from widgets.workers import raise_panel_errors

REASONS = (
    Reason("Finished requests leave their places empty.", "Yes: nobody may join."),
    Reason("A batch lasts as long as its longest request.", "Yes: that is it.", correct=True),
    Reason("The model computes less.", "No: it computes the same tokens."),
)
STEPS = Question("steps", "What happens to the number of steps?", REASONS)
MEMORY = Question("peak_kv_bytes", "What happens to the KV bytes?", REASONS, largest_factor=16.0)


ASKED = Prediction((STEPS, MEMORY), key="45a.flip")


@pytest.fixture
def compare():
    # On the virtual clock, to be quick: what a prediction sees is the same.
    return made("virtual")


def made(clock):
    switch = {"scheduling.policy": "continuous"}
    return Compare(STATIC, switch, tiny(6), rounds=3, headline="steps", clock=clock)


@pytest.fixture
def predict(compare):
    return Predict(compare, ASKED)


def hidden(panel):
    return panel.outcome.widget not in panel._slot.children


def run(panel):
    panel.run()
    ended(panel)


def ended(panel):
    assert panel.wait(30) and panel.last is not None
    raise_panel_errors()


def entry():
    return Progress().entries().get("45a.flip")


def test_a_run_waits_for_the_commitment_and_says_so(compare, predict):
    compare.run()
    assert not compare.worker.busy and compare.last is None and compare.under_way
    waits = "Runs when you commit to a prediction above, or press “Show me”."
    assert waits in compare.status.value
    compare.run_button.click()
    assert not compare.worker.busy and waits in compare.status.value
    assert hidden(compare) and "Hidden until you commit" in compare._slot.children[0].value
    with pytest.raises(RuntimeError, match="Runs when you commit"):
        _ = compare.result
    predict.forms[0].direction.value = "goes down"
    predict.commit_button.click()
    ended(compare)
    assert not hidden(compare) and predict.scores[0].direction is True


def test_show_me_starts_the_run_too_and_nothing_runs_that_was_not_asked_for(compare, predict):
    predict.show_button.click()
    assert not compare.under_way and compare.last is None
    other = made("virtual")
    shown = Predict(other, replace(ASKED, key="45a.other"))
    other.run()
    shown.show_button.click()
    ended(other)
    assert not hidden(other) and Progress().entries() == {}


def test_places_below_say_what_they_wait_for(compare, predict, monkeypatch):
    monkeypatch.setattr("widgets.panels.base.display", lambda *shown, **options: None)
    compare.also(lambda result: {"steps": result.counts["on"].steps})
    ((_, place),) = compare._places
    assert "Hidden until you commit" in place.children[0].value
    compare.run()
    predict.show_button.click()
    ended(compare)
    assert "steps" in place.children[0].value


def test_headless_everything_runs_at_once_and_reveals_nothing(compare, predict, headless):
    run(compare)
    assert compare.result.rounds == 1
    assert hidden(compare)
    assert predict.feedback.value == "" and Progress().entries() == {}


def test_masked_panels_take_turns_in_the_order_they_are_named(headless, monkeypatch):
    monkeypatch.delenv("MINSERVE_HEADLESS")
    panels = [made("virtual") for _ in range(4)]
    order = []
    for number, panel in enumerate(panels):
        panel.on_result(lambda result, number=number: order.append(number))
    predict = Predict(panels[0], ASKED, also=panels[1:])
    for panel in reversed(panels):
        panel.run()
    predict.show_me()
    for panel in panels:
        ended(panel)
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_commit_shows_and_scores_every_part_once(clock):
    compare = made(clock)
    predict = Predict(compare, ASKED)
    compare.run()
    steps, memory = predict.forms
    steps.direction.value = "goes down"
    steps.factor.value = 1.8
    steps.reason.value = 1
    memory.direction.value = "goes down"
    memory.factor.value = 8.0
    memory.reason.value = 2
    predict.commit_button.click()
    assert "Watch the run" in predict.status.value or predict.scores[0] is not None
    ended(compare)
    assert not hidden(compare)
    assert [one.points for one in predict.scores] == [3, 0]
    assert "You had 3 of 6" in predict.status.value
    assert "✓" in predict.feedback.value and "✗" in predict.feedback.value
    assert "it computes the same tokens" in predict.feedback.value
    assert "The reason: A batch lasts as long as its longest request. That is it." in (
        predict.feedback.value
    )
    assert (entry().first, entry().out_of, entry().kind) == (3, 6, "predict")
    assert predict.commit_button.disabled and predict.show_button.disabled
    assert all(part.disabled for form in predict.forms for part in form.inputs)
    predict.commit()
    run(compare)
    assert entry().tries == 1


def test_what_was_left_untouched_is_never_scored(compare, predict):
    compare.run()
    predict.commit_button.click()
    assert hidden(compare) and "Choose something first" in predict.status.value
    predict.forms[0].direction.value = "goes down"
    predict.commit_button.click()
    ended(compare)
    assert not hidden(compare)
    first, second = predict.scores
    assert (first.direction, first.factor, first.reason) == (True, None, None)
    assert (second.direction, second.factor, second.reason) == (None, None, None)
    assert predict.feedback.value.count("not predicted, not scored") == 5
    assert entry().first == 1


def test_a_commitment_before_the_run_is_scored_when_the_run_is_done(compare, predict):
    predict.forms[0].direction.value = "goes up"
    predict.commit_button.click()
    assert predict.scores == (None, None) and "Now run it" in predict.status.value
    run(compare)
    assert predict.scores[0].direction is False
    assert "You had 0 of 6" in predict.status.value


def test_a_commitment_whose_run_was_stopped_says_so_and_is_scored_by_the_next():
    compare = made("wall")
    predict = Predict(compare, ASKED)
    predict.forms[0].direction.value = "goes down"
    compare.run()
    predict.commit_button.click()
    assert "Watch the run" in predict.status.value
    compare.stop()
    assert compare.wait(30) and compare.last is None
    assert "Watch the run" not in predict.status.value
    assert "the run gave no result. Run it again" in predict.status.value
    run(compare)
    assert predict.scores[0].direction is True and "You had 1 of 6" in predict.status.value
    compare.run()
    compare.stop()
    assert compare.wait(30)
    assert "You had 1 of 6" in predict.status.value, "what is scored stays scored"


def test_show_me_gives_the_reasons_and_which_is_right_and_scores_nothing(compare, predict):
    compare.run()
    predict.forms[0].direction.value = "goes down"
    predict.show_button.click()
    assert "right: A batch lasts as long as its longest request. Yes: that is it." in (
        predict.feedback.value
    )
    ended(compare)
    assert not hidden(compare)
    for reason in REASONS:
        assert reason.text in predict.feedback.value and reason.feedback in predict.feedback.value
    assert predict.feedback.value.count("✓") == 2
    assert compare.result.sentence("steps").split("“")[0] in predict.feedback.value
    predict.commit()
    assert predict.scores == (None, None) and entry() is None


def test_further_panels_are_hidden_too(compare):
    other = Compare(STATIC, {"seed": 1}, tiny(2), rounds=3)
    predict = Predict(compare, replace(ASKED, questions=(STEPS,)), also=[other])
    assert hidden(other)
    predict.show_me()
    assert not hidden(other) and not hidden(compare)


# A restart: the same cells again, over the same file of scores.


def committed():
    compare = made("virtual")
    predict = Predict(compare, ASKED)
    predict.forms[0].put(Guess("down", 1.8, 1))
    predict.forms[1].put(Guess("same", None, None))
    predict.commit()
    return compare, predict


def test_a_commitment_survives_a_restart_and_its_run_starts():
    compare, predict = committed()
    run(compare)
    before = (entry(), predict.scores, predict.feedback.value)
    compare = made("virtual")
    again = Predict(compare, ASKED)
    assert again.revealed and again.commit_button.disabled
    assert "your prediction from before" in again.status.value
    assert [form.guess for form in again.forms] == [form.guess for form in predict.forms]
    assert again.forms[0].reason.disabled and not hidden(compare)
    run(compare)
    assert (entry(), again.scores, again.feedback.value) == before
    assert entry().tries == 1, "a restart is not another try"


def test_a_commitment_that_was_not_scored_is_scored_after_the_restart():
    committed()
    assert entry() is None
    compare = made("virtual")
    Predict(compare, ASKED)
    run(compare)
    assert entry().tries == 1


@pytest.mark.parametrize(
    ("commits", "fits"),
    [
        ((Chosen("up", 16.0, 2), Chosen("up", 16.0, 2)), True),
        ((Chosen("up", 17.0, 2), Chosen("up", 2.0, 2)), False),
        ((Chosen("up", 0.5, 2), Chosen("up", 2.0, 2)), False),
        ((Chosen("up", 2.0, 3), Chosen("up", 2.0, 2)), False),
        ((Chosen("up", 2.0, 2),), False),
    ],
)
def test_a_commitment_that_the_form_cannot_hold_is_asked_again(commits, fits):
    asked = Prediction((replace(STEPS, largest_factor=16.0), MEMORY), key="45a.flip")
    Progress().keep(Commit("45a.flip", fingerprint(asked), commits))
    assert Predict(made("virtual"), asked).revealed is fits


def test_what_was_scored_is_not_scored_again_by_a_later_run():
    compare = made("virtual")
    predict = Predict(compare, ASKED)
    predict.forms[0].put(Guess("down", 1.8, 1))
    predict.commit()
    run(compare)
    first = predict.scores
    result = compare.last
    steps = result.metrics["steps"]
    turned = replace(steps, verdict=judge([1.0] * 3, [4.0] * 3, "lower"))
    predict._look(replace(result, metrics={**result.metrics, "steps": turned}))
    assert predict.scores == first and first[0].direction is True


def test_show_me_survives_a_restart():
    Predict(made("virtual"), ASKED).show_me()
    compare = made("virtual")
    again = Predict(compare, ASKED)
    assert not hidden(compare) and "no score" in again.status.value
    run(compare)
    assert entry() is None and "right: A batch lasts" in again.feedback.value


def test_other_questions_have_no_commitment():
    committed()
    changed = replace(STEPS, text="What happens to the steps?")
    compare = made("virtual")
    predict = Predict(compare, replace(ASKED, questions=(changed, MEMORY)))
    assert hidden(compare) and predict.committed is None


def test_a_cell_that_runs_again_leaves_no_mask_behind(compare):
    Predict(compare, ASKED)
    compare.run()
    again = Predict(compare, ASKED)
    again.forms[0].put(Guess("down", 1.8, 1))
    again.commit()
    assert not hidden(compare)
    third = Predict(compare, ASKED)
    ended(compare)
    assert not hidden(compare) and third.scores == again.scores
    assert entry().tries == 1


def test_headless_nothing_is_restored(monkeypatch):
    committed()
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    assert Predict(made("virtual"), ASKED).committed is None


def test_predict_again_hides_asks_anew_and_keeps_the_first_score():
    compare, predict = committed()
    run(compare)
    first = entry().first
    predict.again_button.click()
    assert hidden(compare) and predict.feedback.value == ""
    assert predict.committed is None and not predict.forms[0].guess.touched
    assert not predict.forms[0].direction.disabled and predict.again_button.disabled
    assert not Predict(made("virtual"), ASKED).revealed, "a restart asks anew as well"
    predict.forms[0].put(Guess("up", 5.0, 0))
    predict.commit_button.click()
    assert not hidden(compare) and "You had 0 of 6" in predict.status.value
    assert (entry().first, entry().best, entry().tries) == (first, first, 2)


# Noise.


class Noisy(Compare):
    """A comparison whose measured metric gives no verdict until `calm`."""

    calm = False

    def work(self, job):
        result = super().work(job)
        if self.calm:
            return result
        measured = result.metrics["peak_kv_bytes"]
        verdict = replace(measured.verdict, outcome="unclear", exact=False)
        noisy = replace(measured, verdict=verdict)
        return replace(result, metrics={**result.metrics, "peak_kv_bytes": noisy})

    def show(self, result):
        """What is drawn is not what is scored."""


def test_nothing_is_scored_without_a_verdict_and_the_next_run_with_one_scores_it():
    compare = Noisy(STATIC, {"scheduling.policy": "continuous"}, tiny(6), rounds=3,
                    headline="steps", clock="virtual")  # fmt: skip
    predict = Predict(compare, ASKED)
    predict.forms[0].put(Guess("down", 1.8, 1))
    predict.forms[1].put(Guess("down", 8.0, 0))
    predict.commit()
    run(compare)
    assert predict.scores[0].points == 3, "a counted question is scored at once"
    assert predict.scores[1] is None and entry() is None
    text = "Not scored yet: this machine was too busy for a verdict. Run again."
    assert text in predict.status.value and "you had 3 of 3" in predict.status.value
    assert "direction, not scored yet: You said it goes down" in predict.feedback.value
    assert "reason, not so: Finished requests leave" in predict.feedback.value
    compare.calm = True
    run(compare)
    assert predict.scores[1].points == 0
    assert (entry().first, entry().out_of, entry().tries) == (3, 6, 1)


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


def test_no_factor_is_right_where_the_direction_is_wrong():
    # Measured: 1.1x to 1.6x. 1x and 1/1.05 are within the tolerance, on the wrong side.
    verdict = judge([1.0] * 5, [1.1, 1.4, 1.4, 1.5, 1.6], "lower")
    for guess in (Guess("same", None, None), Guess("down", 1.05, None)):
        found = score(STEPS, guess, verdict)
        assert (found.direction, found.factor) == (False, False)


@pytest.mark.parametrize(
    ("guess", "direction", "factor"),
    [
        (Guess("same", None, None), True, True),
        # No difference was detectable, and this small one was within what was measured.
        (Guess("up", 1.05, None), True, True),
        (Guess("up", 1.15, None), False, False),
        (Guess("up", 2.0, None), False, False),
        (Guess("up", None, None), False, None),
    ],
)
def test_no_difference_detectable_is_a_result_too(guess, direction, factor):
    verdict = replace(judge([1.0] * 5, [0.95, 1.0, 1.02, 1.04, 1.1], "lower"), outcome="same")
    found = score(STEPS, guess, verdict)
    assert (found.direction, found.factor) == (direction, factor)


@pytest.mark.parametrize("guess", [Guess("same", None, None), Guess("up", 1.05, None)])
def test_a_factor_in_the_wrong_direction_is_not_right(guess):
    verdict = judge([1.0] * 5, [0.88, 0.9, 0.9, 0.91, 0.92], "lower")
    found = score(STEPS, guess, verdict)
    assert (found.direction, found.factor) == (False, False)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_runs_without_a_verdict_score_no_direction(better):
    verdict = replace(judge([1.0] * 5, [0.5, 0.9, 1.0, 1.2, 3.0], better), outcome="unclear")
    for direction in ("up", "down", "same"):
        assert score(STEPS, Guess(direction, 2.0, 1), verdict) is None
    exact = judge([2.0], [2.0], better, exact=True)
    assert score(STEPS, Guess("same", None, None), exact).direction is True
    assert score(STEPS, Guess("up", None, None), exact).direction is False


def test_a_question_has_three_reasons_and_one_is_right():
    with pytest.raises(ValueError, match="three reasons"):
        Question("steps", "?", REASONS[:2])
    with pytest.raises(ValueError, match="one of them with correct"):
        Question("steps", "?", (REASONS[0], REASONS[0], REASONS[2]))
    with pytest.raises(ValueError, match="its feedback"):
        Question("steps", "?", (*REASONS[:2], Reason("The model is smaller.", "")))


def test_every_input_has_a_label_and_headless_only_words_remain(predict, monkeypatch):
    assert all(part.description for form in predict.forms for part in form.inputs)
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    assert "number of steps" in predict._repr_mimebundle_()["text/plain"]


def test_a_wrong_factor_is_told_with_its_direction():
    assert _factor(Guess("up", 3.0, None)) == "a factor of 3x up"
    assert _factor(Guess("same", None, None)) == "a factor of 1x"
