"""Chapter 45a teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import pytest
from labs.chapters import LABS, run_cells

from labs import lint
from widgets.panels import Compare
from widgets.panels.exercises.exercise import load_exercise
from widgets.panels.exercises.judging import check
from widgets.workers import raise_panel_errors

CHAPTER = "45a_continuous_batching"
PATH = LABS / f"{CHAPTER}.ipynb"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, policies=("static", "continuous"), **workload):
    """Both sides on the modelled GPU."""
    sides = tuple(chapter["STATIC"].with_values({"scheduling.policy": each}) for each in policies)
    panel = Compare(
        sides[0],
        sides,
        chapter["workload"](**workload),
        virtual=chapter["A100"],
        shape=chapter["LLAMA"],
        clock="virtual",
    )
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = compared(chapter)
    assert ratio(result, "steps") < 0.6
    assert ratio(result, "duration_s") < 0.6
    assert ratio(result, "peak_kv_bytes") > 1.2
    totals = [trace.totals for trace in result.traces.values()]
    assert totals[0].sampled_tokens == totals[1].sampled_tokens


@pytest.mark.parametrize("policy", ["static", "continuous"])
def test_a_policy_against_itself_shows_no_effect(chapter, policy):
    result = compared(chapter, (policy, policy))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_with_equal_lengths_and_all_prompts_in_one_step_the_gain_is_gone(chapter):
    result = compared(chapter, spread=0.0)
    assert ratio(result, "steps") == ratio(result, "duration_s") == 1.0


def test_the_spread_of_lengths_leaves_their_sum_alone(chapter):
    sums = {sum(chapter["lengths"](tenth / 10, 48, 32)) for tenth in range(11)}
    assert max(sums) - min(sums) <= 16


def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "break")
    sweep, playground = chapter["sweep"].result, chapter["playground"]
    gains = {value: spread.median for value, spread in sweep.points.items()}
    assert gains[0.0] > 1.05 and gains[1.0] < 0.9
    assert 0.3 < sweep.crossover < 0.5
    nearest = min(chapter["guess"].asked.choices, key=lambda choice: abs(choice - sweep.crossover))
    assert nearest == 0.4
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    # What the prose says survives at spread 0.
    assert ratio(start, "duration_s") < 1 < 1.2 < ratio(start, "tpot_p50_s")
    for name, value in {"spread": 1.0, "prompt_tokens": 64, "mean": 8}.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median - start.verdict.ratio.median) > 0.01, name
        control.value = before
    raise_panel_errors()


def test_a_request_for_one_token_waits_for_one_that_needs_68(chapter):
    lengths = chapter["lengths"](1.0, 24, 24)
    assert lengths[20] == 1 and max(lengths[8:16]) == lengths[12] == 68
    static, _ = compared(chapter).traces.values()
    ends = {one.request_id: one.metrics for one in static.requests}
    assert ends["20"].first_scheduled_s >= ends["12"].finished_s > ends["1"].finished_s
    header, figure = (lint.source(lint.read(PATH)["cells"][at]) for at in (0, 4))
    assert "a request for one token wait for one that needs 68" in header
    assert "Request 20" in figure and "request 12" in figure


def test_every_name_of_the_shown_code_that_the_chapter_does_not_use_is_explained():
    (cell,) = (one for one in lint.read(PATH)["cells"] if "getsource(" in lint.source(one))
    shown = "".join("".join(output["text"]) for output in cell["outputs"])
    explained = "".join(line for line in lint.source(cell).splitlines() if line.startswith("#"))
    names = (
        "promised_blocks watermark_blocks _open_places _batch _alike found _chunk before culprit"
    )
    for name in [*names.split(), "checked_flag", "AdmissionError"]:
        assert name in shown, f"{name} is explained and not shown"
        assert f"{name}:" in explained or f"{name}." in explained, name


def test_what_is_said_about_a_wrong_rule_is_true():
    exercise = load_exercise("45a_admission")

    def largest_for_all(newcomer, running, total_pages, page_tokens):
        largest = max(seat.tokens + seat.left - 1 for seat in (*running, newcomer))
        return largest * (len(running) + 1) <= total_pages * page_tokens

    told = check(largest_for_all, exercise).misconception
    assert told.name == "tokens" and "add up" not in told.message, "it multiplies"

    def without_newcomer(newcomer, running, total_pages, page_tokens):
        held = (-(-(seat.tokens + seat.left - 1) // page_tokens) for seat in running)
        return sum(held) <= total_pages

    assert check(without_newcomer, exercise).misconception.name == "left out"

    def one_step_ahead(newcomer, running, total_pages, page_tokens):
        seats = (*running, newcomer)
        steps = min(seat.left for seat in seats) - 1
        return sum(-(-(seat.tokens + steps) // page_tokens) for seat in seats) <= total_pages

    assert "1 preemption, and 64 tokens computed again" in str(check(one_step_ahead, exercise))
