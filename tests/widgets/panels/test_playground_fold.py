"""Every comparison opens in the playground: its sides become base and variant, its requests too."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from minserve.bench.compare.code import decode
from minserve.bench.compare.gpu import OWN
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.hardware import DEVICES
from minserve.request import SamplingParams
from minserve.virtual import CostModel, LaunchCost
from minserve.virtual.transfers import HostLink
from tests.widgets.panels.tiny_runs import STATIC, arriving, tiny
from widgets.panels import Compare, Metric, Slide
from widgets.panels.comparison.playground import TITLE
from widgets.playground import Playground

SWITCH = {"scheduling.policy": "continuous"}
COST = CostModel(DEVICES["T4"], "float16", 0.5, 1e-3, HostLink(1e9))
LLAMA = SHAPES["llama-3.1-8b"]


def opened(panel):
    """The fold after a click, as (setup, words)."""
    fold = panel.playground
    assert fold.widget.titles == (TITLE,) and fold.widget in panel.widget.children
    assert fold.code.value == "", "no code is made before the fold is opened"
    fold.widget.selected_index = 0
    return decode(fold.code.value), re.sub(r"<[^>]*>", " ", fold.words.value)


def test_sides_become_base_and_variant_with_their_names(headless):
    panel = Compare(STATIC, SWITCH, tiny(), names=("static", "continuous"), rounds=3)
    setup, words = opened(panel)
    assert setup.names == ("static", "continuous") and setup.clock == "wall"
    ours = panel.configs()
    for name in setup.names:
        # Where a run computes is the playground's own choice.
        assert setup.config(name) == ours[name].with_values({"device": "auto"})
    assert setup.changes("continuous") == SWITCH and setup.rounds == 3
    assert '<a href="02_playground.ipynb"' in panel.playground.words.value
    assert "paste it into “Code”" in words and "drawn anew" in words


def test_the_playground_repeats_a_comparison_on_the_virtual_clock(headless):
    panel = Compare(STATIC, SWITCH, tiny(6), clock="virtual", virtual=COST, headline="steps")
    panel.run()
    setup, _ = opened(panel)
    play = Playground()
    assert play.restore(panel.playground.code.value) and play.setup == setup
    play.run()
    assert play.machine.gpu.value == "T4" and setup.gpu.link_bytes_per_s == 1e9
    for name, trace in panel.result.traces.items():
        ours = play.result.traces[name].totals
        for what in ("steps", "duration_s", "flops", "bytes", "peak_kv_bytes_allocated"):
            assert getattr(ours, what) == getattr(trace.totals, what), what
    assert play.result.pairs["on"].sentence() == panel.result.sentence()


def test_arrivals_keep_the_rate_of_the_slider(headless):
    panel = Compare(STATIC, SWITCH, arriving(50.0), rounds=3)
    panel.rate.value = 100.0
    setup, _ = opened(panel)
    assert setup.workload.number("rate") == 100.0
    gaps = [row[0] for row in setup.workload.rows]
    assert gaps == pytest.approx([each.gap for each in panel.traffic().requests], rel=1e-5)


def test_a_moved_control_and_a_second_click_give_another_code(headless):
    panel = Compare(STATIC, SWITCH, lambda count: tiny(count), rounds=3,
                    workload_controls=[Slide("count", 2, 9, 4)])  # fmt: skip
    assert len(opened(panel)[0].workload.rows) == 4
    panel.controls["count"].value = 7
    panel.playground.widget.selected_index = None
    panel.playground.widget.selected_index = 0
    assert len(decode(panel.playground.code.value).workload.rows) == 7


def test_a_shape_is_the_model_and_a_device_of_ones_own_is_three_numbers(headless):
    mine = Compare(STATIC, SWITCH, tiny(), clock="virtual", virtual=COST, shape=LLAMA)
    assert opened(mine)[0].model == "llama-3.1-8b"
    device = replace(DEVICES["T4"], memory_bytes_per_s=123e9)
    other = Compare(STATIC, SWITCH, tiny(), clock="virtual",
                    virtual=CostModel(device, "float16"))  # fmt: skip
    gpu = opened(other)[0].gpu
    assert (gpu.name, gpu.bytes_per_s, gpu.flops_per_s) == (OWN, 123e9, 65e12)


def test_what_the_playground_does_otherwise_is_said(headless):
    odd = Metric("odd", "odd quantity", "lower", lambda run: 1.0, str, samples=lambda run: [])
    cost = LaunchCost(DEVICES["T4"], "float16", launches=100)
    params = [fixed_length(3, 0.7), SamplingParams(max_tokens=4)]
    sampled = at_once([[3, 4], [5, 6]], params)
    panel = Compare(STATIC, SWITCH, sampled, clock="virtual", virtual=cost, headline=odd)
    setup, words = opened(panel)
    assert setup.headline == "duration_s"
    for said in (
        "not odd quantity",
        "Launches of the host take no time",
        "Answers are greedy",
        "Every answer has its largest length",
        "device has its default there",
    ):
        assert said in words, said


def test_what_cannot_be_opened_there_is_a_sentence(headless):
    shape = replace(LLAMA, name="a shape of one chapter")
    panel = Compare(STATIC, SWITCH, tiny(), clock="virtual", virtual=COST, shape=shape)
    panel.playground.widget.selected_index = 0
    assert panel.playground.code.value == ""
    assert "It cannot be opened there: the modelled shape" in panel.playground.words.value
