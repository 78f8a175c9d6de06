"""Chapter 46 teaches what is so: fusing removes launches and bytes, parts of a context reverse."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from labs.chapters import run_cells

from minserve.bench.counts.launches import WAYS, kernel_counts, modelled_s, step_launches
from minserve.kernels.counts.launches import Total, by_operator
from minserve.kernels.occupancy import GAIN, LEAST_KEYS
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "46_fusion_and_attention"
SWITCH = "kernels.backend"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, backends, rounds=3):
    """Both sides on the real engine, for a few tokens."""
    sides = tuple(chapter["UNFUSED"].with_values({SWITCH: each}) for each in backends)
    panel = Compare(
        sides[0], sides, chapter["workload"](prompt_tokens=8, output_tokens=4, count=2),
        names=("one", "other"), headline=chapter["ITL"],
        metrics=(chapter["LAUNCHES"], chapter["MOVED"]), rounds=rounds, clock="wall",
    )  # fmt: skip
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_in_counts(chapter):
    if chapter["FUSED"] == "torch":
        pytest.skip("neither a compiler nor a GPU: both sides are torch's")
    result = compared(chapter, ("torch", chapter["FUSED"]))
    assert ratio(result, "launches") < 1 / 4
    assert ratio(result, "moved") < 0.4
    assert result.metrics["launches"].provenance == result.metrics["moved"].provenance == "counted"
    assert ratio(result, "flops") == ratio(result, "peak_kv_bytes") == 1.0
    assert result.agreement.held
    raise_panel_errors()


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_the_switch_against_itself_shows_no_effect(chapter, backend):
    backend = chapter["FUSED"] if backend == "fused" else backend
    result = compared(chapter, (backend, backend))
    counted = {name for name, each in result.metrics.items() if each.metric.counted}
    assert counted >= {"launches", "moved", "flops", "bytes", "steps"}
    assert {name: ratio(result, name) for name in counted} == dict.fromkeys(counted, 1.0)
    # What is measured may differ by chance on a busy machine.
    assert {result.metrics[name].verdict.outcome for name in counted} == {"same"}


def test_the_counts_of_a_side_are_those_of_the_steps_that_ran(chapter):
    result = compared(chapter, ("torch", "torch"))
    trace = result.traces["one"]
    found = chapter["launches_of"](trace)
    assert result.metrics["launches"].quoted == {"one": len(found), "other": len(found)}
    lens = [([8, 8], [8, 8]), *(([1, 1], [8 + n, 8 + n]) for n in range(1, 4))]
    steps = [step_launches(chapter["SMALL"], "torch", *each, "float32") for each in lens]
    assert len(trace.steps) == len(steps)
    assert found == [launch for step in steps for launch in step]
    assert chapter["between"](found) < Total.of(found).moved.total


def test_what_the_prose_says_of_the_counts(chapter):
    torchs, fused = (
        by_operator(step_launches(chapter["SMALL"], way, [1] * 4, [63] * 4, "float32"))
        for way in ("torch", "fused")
    )
    layers = chapter["SMALL"].num_layers
    norms = sum(total.launches for name, total in torchs.items() if "rms_norm" in name)
    launches = sum(total.launches for total in torchs.values())
    assert norms + torchs["rotary_store_"].launches > launches / 2, "most launches are these"
    between = sum(t.moved.total for name, t in torchs.items() if name != "linear")
    assert torchs["attention"].moved.total > between / 2, "most bytes are attention's"
    assert torchs["linear"] == fused["linear"], "the products stay"
    assert fused["attention"].launches == fused["rotary_store_"].launches == layers


@pytest.mark.slow
def test_the_modelled_gains_are_three_different_ones(chapter):
    llama, gpu = chapter["LLAMA"].spec(), chapter["DEVICES"]["H100 SXM"]

    def step(rows, requests):
        lens = [rows] * requests, [max(rows, 1024)] * requests
        return {way: step_launches(llama, way, *lens, "bfloat16") for way in WAYS}

    def seconds(ways, launch_s):
        return {way: modelled_s(each, gpu, "bfloat16", launch_s) for way, each in ways.items()}

    one, many, prompt = step(1, 1), step(1, 64), step(2048, 1)
    bare, real = seconds(one, 0.0), seconds(one, 5e-6)
    assert bare["torch"] / bare["fused"] < 1.1 < 1.4 < real["torch"] / real["fused"]
    assert real["torch"] == len(one["torch"]) * 5e-6, "one request waits for launches"
    real = seconds(many, 5e-6)
    assert real["torch"] == seconds(many, 0.0)["torch"] > 1.5 * real["fused"]
    cached = by_operator(many["fused"])["attention"].moved.total
    assert by_operator(many["torch"])["attention"].moved.total > 2.9 * cached, "copies of pages"
    moved = {way: Total.of(each).moved.total for way, each in prompt.items()}
    assert moved["written out"] > 2 * moved["torch"] > 4 * moved["fused"], "scores"
    real = seconds(prompt, 5e-6)
    assert real["written out"] > 2 * real["fused"]


@pytest.mark.slow
def test_the_real_kernels_keep_the_promise():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    counts = kernel_counts()
    assert counts is not None and len(counts) == 10
    assert all(each["memory over least"] <= 1.1 for each in counts.values())
    assert all(each["unfused launches"] > each["launches"] for each in counts.values())


def test_the_online_softmax_is_that_of_the_engine_and_its_maximum_moves():
    chapter = run_cells(CHAPTER, "workload", "baseline", "softmax")
    softmax, row = chapter["softmax"], chapter["row"]
    last = torch.tensor(softmax.states[-1].normalised)
    assert len(softmax) == 8 and row.scores.shape == (64,)
    assert (last - row.output).abs().max() < 1e-5
    shrinks = [state.shrink for state in softmax.states[1:]]
    assert min(shrinks) < 0.1, "in one tile most of the past shrinks away"
    assert 1.0 in shrinks, "and in others the maximum stays"


def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "break")
    splits, guess = chapter["splits"], chapter["guess"]
    start = splits.result
    assert start.ratio < 1 / 8, "one request: parts are the gain"
    assert 8 <= start.losing_from <= 32
    nearest = min(guess.asked.choices, key=lambda choice: abs(choice - start.losing_from))
    assert nearest == 16
    fastest = min(start.costs, key=lambda cost: cost.modelled_s).parts
    assert (start.splitting.chosen(), fastest) == (8, 16), "no part has fewer than 128 keys"
    assert start.splitting.context // LEAST_KEYS == 8 and GAIN == 1 + 1 / 8
    splits.controls["requests"].value = 64
    splits.run()
    many = splits.result
    assert many.splitting.chosen() == 2, "its estimate leaves out bytes"
    assert many.ratio > 1.1, "64 requests: the same parts are a loss"
    assert all(a.bytes < b.bytes for a, b in zip(many.costs, many.costs[1:], strict=False))
    splits.controls["context"].value = 256
    splits.run()
    assert splits.result.ratio > many.ratio, "the shorter the context, the more"
    for name, value in {"parts": 2, "requests": 4, "gpu": "T4"}.items():
        before = splits.result.ratio
        splits.controls[name].value = value
        splits.run()
        assert abs(splits.result.ratio / before - 1) > 0.01, name
    raise_panel_errors()
