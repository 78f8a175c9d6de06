"""Chapter 45a teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import pytest
from labs.chapters import run_cells

from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "45a_continuous_batching"


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
