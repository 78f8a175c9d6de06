"""Chapter 45c teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
from labs.chapters import run_cells

from minserve.config import resolve
from minserve.loading import find_model
from widgets.figures import completions
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "45c_preemption"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, orders=("fcfs", "mlfq"), **workload):
    """Both sides on the modelled GPU."""
    sides = tuple(chapter["FCFS"].with_values({"scheduling.order": each}) for each in orders)
    panel = Compare(
        sides[0],
        sides,
        chapter["workload"](**workload),
        virtual=chapter["H100"],
        shape=chapter["LLAMA"],
        clock="virtual",
    )
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def mean_s(trace):
    return fmean(one.metrics.e2e_s for one in trace.requests)


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = compared(chapter)
    assert ratio(result, "e2e_mean_s") < 1 / 1.5
    assert ratio(result, "duration_s") < 1.05
    first, feedback = (trace.totals for trace in result.traces.values())
    assert first.sampled_tokens == feedback.sampled_tokens
    assert first.preemptions == 0 < feedback.preemptions
    assert 1 < ratio(result, "flops") < 1.2


def test_eighteen_requests_gain_much_and_four_lose_a_little(chapter):
    result = compared(chapter)
    before, after = (
        {one.request_id: one.metrics.e2e_s for one in trace.requests}
        for trace in result.traces.values()
    )
    changes = sorted(after[each] / before[each] for each in before)
    assert changes[17] < 0.3 and changes[18] == changes[19] == 1.0
    assert changes[20] > 1.1 and changes[-1] < 1.3


@pytest.mark.parametrize("order", ["fcfs", "mlfq"])
def test_an_order_against_itself_shows_no_effect(chapter, order):
    result = compared(chapter, (order, order))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


@pytest.mark.slow
def test_on_a_heavy_tailed_trace_the_mean_falls_and_a_limit_bounds_the_worst_case():
    chapter = run_cells(CHAPTER, "workload", "predict", "big", "bounded", "srpt", "errors")
    big, bounded = chapter["big"].result, chapter["bounded"].result
    assert ratio(big, "e2e_mean_s") < 1 / 1.5
    assert ratio(big, "e2e_p50_s") < 0.1
    # The price: the longest wait longer, and the whole workload ends later.
    assert 1.2 < ratio(big, "duration_s") < 1.35
    assert 1.3 < ratio(big, "e2e_max_s") < 1.6
    # A limit of five seconds gives most of the longest wait back.
    assert ratio(bounded, "e2e_max_s") < 1.2
    assert ratio(big, "e2e_mean_s") < ratio(bounded, "e2e_mean_s") < 1 / 1.5
    errors = {value: point.median for value, point in chapter["errors"].result.points.items()}
    assert errors[0.0] < 0.5 and errors[1.0] < 0.5
    assert errors[1.0] < errors[2.0] < errors[5.0] < 1 < errors[10.0] < errors[20.0]
    means = {name: mean_s(trace) for name, trace in {**big.traces, **chapter["KNOWN"]}.items()}
    # Knowing the lengths adds little to a feedback queue; without preemption it adds nothing.
    assert means["shortest remaining"] < means["feedback"] < means["shortest first"]
    assert means["feedback"] < 1.25 * means["shortest remaining"]
    known = {name: trace.totals.preemptions for name, trace in chapter["KNOWN"].items()}
    assert known["shortest first"] == 0 < known["shortest remaining"]
    # The figure is about the longest answers: none of them may be left out.
    drawn = completions(big.traces).table
    longest = sorted(one.params.max_tokens for one in chapter["HEAVY"].requests)[-20:]
    for name in big.sides:
        asked = sorted(row["output tokens"] for row in drawn if row["side"] == name)
        assert asked[-20:] == longest
    raise_panel_errors()


def test_the_probe_that_the_chapter_quotes_is_better_than_guessing_and_not_by_much():
    """The prose says that a prompt tells little here; a better probe would need other words."""
    card = json.loads((find_model("zoo/base") / "length_probe.json").read_text())["card"]
    held_out = card["held_out"]
    assert held_out["one number for all"]["pairs_in_order"] == 0.5
    assert 0.53 < held_out["probe"]["pairs_in_order"] < 0.7
    assert held_out["another draw of the same prompts"]["pairs_in_order"] < 0.6


def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "predict", "big", "bounded", "break")
    spreads, playground = chapter["spreads"].result, chapter["playground"]
    gains = {value: spread.median for value, spread in spreads.points.items()}
    assert gains[0.0] > 1.2 and gains[1.0] < 0.6
    assert 0.4 < spreads.crossover < 0.5
    choices = chapter["crossover"].asked.choices
    assert min(choices, key=lambda choice: abs(choice - spreads.crossover)) == 0.5
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    values = {
        "scheduling.mlfq_quantum": 256,
        "spread": 1.0,
        "essay_tokens": 400,
        "prompt_tokens": 2000,
    }
    for name, value in values.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median - start.verdict.ratio.median) > 0.01, name
        control.value = before
    # The chapter asks what long prompts do to the gain: computing them again takes most of it.
    gains = []
    playground.controls["spread"].value = 1.0
    for prompt in (24, 2000):
        playground.controls["prompt_tokens"].value = prompt
        playground.run()
        gains.append(playground.result.verdict.ratio.median)
    assert gains[0] < 0.35 and 0.8 < gains[1] < 1
    raise_panel_errors()


def test_the_starvation_limit_offers_what_its_help_says():
    chapter = run_cells(CHAPTER, "workload", "predict", "big", "bounded")
    bounded = chapter["bounded"]
    limit = bounded.controls["scheduling.starvation_limit_s"]
    assert "Automatic: 30 seconds." in limit.spec.doc and "None" not in limit.spec.doc
    limit.value = None
    config = bounded.configs()["bounded"]
    resolved = resolve(config, chapter["LLAMA"].spec())
    assert resolved.config.scheduling.starvation_limit_s == 30.0
    raise_panel_errors()
