"""Chapter 45b teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import pytest
from labs.chapters import run_cells

from minserve.config import resolve
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "45b_chunked_prefill"
SWITCH = "scheduling.enable_chunked_prefill"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, switches=(False, True)):
    """The 8B on the modelled GPU with a prompt of 32,000 tokens."""
    base = chapter["WHOLE"].with_values({"scheduling.max_model_len": 33_000})
    sides = tuple(base.with_values({SWITCH: each}) for each in switches)
    panel = Compare(
        base,
        sides,
        chapter["workload"](32_000, 1000, 200),
        virtual=chapter["H100"],
        shape=chapter["LLAMA"],
        clock="virtual",
    )
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = compared(chapter)
    assert ratio(result, "itl_max_s") < 0.05
    largest = [max(step.num_tokens for step in t.steps) for t in result.traces.values()]
    assert largest == [32_007, 512]
    assert ratio(result, "flops") == 1.0
    whole, chunked = (trace.totals for trace in result.traces.values())
    assert chunked.sampled_tokens == whole.sampled_tokens


@pytest.mark.parametrize("switch", [False, True])
def test_the_switch_against_itself_shows_no_effect(chapter, switch):
    result = compared(chapter, (switch, switch))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline(capsys):
    chapter = run_cells(CHAPTER, "workload", "predict", "big", "break")
    cost, stall = chapter["cost"].result, chapter["stall"].result
    price = {budget: spread.median for budget, spread in cost.points.items()}
    assert price[256] < 0.9 and price[512] < 1 and price[64] > 1.5
    assert 128 < cost.crossover < 256
    assert chapter["ridge"]._value() == pytest.approx(295, abs=1)
    # What it buys stops growing where it starts to cost: reading the weights is the floor.
    pause = {budget: spread.median for budget, spread in stall.points.items()}
    assert pause[4096] > 5 * pause[512] > 5 * pause[256] and pause[64] > 0.95 * pause[128]
    playground = chapter["playground"]
    # Its help speaks of what it offers.
    budget = playground.controls["scheduling.max_num_batched_tokens"]
    assert "Automatic: 512." in budget.spec.doc and "None" not in budget.spec.doc
    before, budget.value = budget.value, None
    chunked = playground.configs()["chunked"]
    assert resolve(chunked, chapter["LLAMA"].spec()).config.scheduling.max_num_batched_tokens == 512
    budget.value = before
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    for name, value in {"scheduling.max_num_batched_tokens": 512, "long_tokens": 4000}.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median - start.verdict.ratio.median) > 0.05, name
        control.value = before
    raise_panel_errors()
