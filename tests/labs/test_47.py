"""Chapter 47 teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import json

import pytest
from labs.chapters import LABS, run_cells
from labs.lint import read, source

from minserve.bench.runs.compilation import break_even_tokens
from minserve.bench.workloads.drive import drive
from minserve.build import build_virtual_engine
from widgets.crossing import crossing
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "47_variable_length"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, kinds=("longest", "none"), **shape):
    """The 8B on the modelled GPU: counts and virtual time, the same everywhere."""
    base = chapter["PADDED"]
    sides = tuple(base.with_values({"kernels.padding": kind}) for kind in kinds)
    panel = Compare(
        base,
        sides,
        chapter["workload"](**shape),
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
    padded, packed = (trace.totals for trace in result.traces.values())
    tokens = packed.prefill_tokens + packed.decode_tokens
    assert packed.padded_rows == 0 and padded.padded_rows > 3 * tokens
    assert ratio(result, "flops") < 0.25
    assert ratio(result, "output_tokens_per_s") > 1.3
    # What the chapter says does not change.
    assert ratio(result, "steps") == ratio(result, "peak_kv_bytes") == 1.0
    assert padded.prefill_tokens + padded.decode_tokens == tokens


@pytest.mark.parametrize("kind", ["longest", "none", "power_of_two"])
def test_a_kind_of_padding_against_itself_shows_no_effect(chapter, kind):
    result = compared(chapter, (kind, kind))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_equal_lengths_make_padding_free_and_a_little_spread_does_not(chapter):
    even = compared(chapter, spread=0.0)
    assert {name: ratio(even, name) for name in even.metrics} == dict.fromkeys(even.metrics, 1.0)
    work = [ratio(compared(chapter, spread=spread), "flops") for spread in (0.1, 0.5, 1.0)]
    assert work == sorted(work, reverse=True) and work[0] < 0.5


def test_one_prompt_that_joins_seven_chats_pads_as_much_as_the_chapter_says(chapter):
    config = chapter["PADDED"].with_values({"trace.per_request": True})
    engine = build_virtual_engine(chapter["LLAMA"].spec(), config, chapter["A100"])
    joined = chapter["at_once"](
        [[1] * 5] * 8 + [[1] * 300], [chapter["fixed_length"](n) for n in [2] + [40] * 7 + [2]]
    )
    drive(engine, joined)
    step = max(engine.trace.steps, key=lambda step: step.num_tokens)
    assert (step.num_tokens, step.num_rows) == (7 + 300, 8 * 300)


@pytest.mark.slow
def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "predict", "launches", "break")
    sweep, playground = chapter["sweep"].result, chapter["playground"]
    points = {requests: spread.median for requests, spread in sweep.points.items()}
    assert points[3] > 1.5 and points[768] < 0.95
    assert sweep.crossover == pytest.approx(crossing(points))
    assert min(chapter["guess"].asked.choices, key=lambda n: abs(n - sweep.crossover)) == 180
    assert 96 < sweep.crossover < 384
    assert sorted(points.values(), reverse=True) == list(points.values())
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    for name, value in {"requests": 770, "prompt_tokens": 512, "output_tokens": 1}.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median - start.verdict.ratio.median) > 0.05, name
        control.value = before
    # A batch that is a rung already needs no padding: only the launches differ.
    playground.controls["requests"].value = 8
    playground.run()
    assert playground.result.metrics["rows"].verdict.ratio.median > 0.95
    # The finer ladder keeps the one launch of a small step, and pads a large one hardly at all.
    assert chapter["H100"].captured < chapter["FINER"].captured
    took = {}
    for kind in ("none", "ladder"):
        playground.controls["kernels.padding"].value = kind
        for requests in (12, 190, 770):
            playground.controls["requests"].value = requests
            playground.run()
            took[kind, requests] = playground.result.verdict.ratio.median
    assert took["none", 12] > 1.5 and took["ladder", 12] <= 1
    for requests in (190, 770):
        assert took["none", requests] <= took["ladder", requests] < 1.01 * took["none", requests]
        assert took["ladder", requests] < 0.95
    raise_panel_errors()


def test_the_launches_of_the_modelled_step_are_those_of_chapter_46():
    chapter = run_cells(CHAPTER, "workload", "launches", "predict", "break", "recorded")
    step, layers = chapter["STEP"], chapter["QWEN"].spec().num_layers
    assert chapter["H100"].launches == len(step["fused"])
    assert 8 * layers < len(step["fused"]) < 10 * layers < 40 * layers < len(step["torch"])
    # Compiling leaves attention as it is: it is no part of the break-even.
    assert chapter["COMPILED"] == len(step["fused"]) - layers
    assert chapter["EAGER"] > 4 * chapter["COMPILED"]
    assert chapter["eager_s"] == chapter["EAGER"] * chapter["H100"].launch_s
    even = break_even_tokens(chapter["cold"], chapter["eager_s"], chapter["compiled_s"], 8)
    assert even == pytest.approx(
        chapter["cold"] / ((chapter["eager_s"] - chapter["compiled_s"]) / 8)
    )


def test_no_cell_prints_what_an_estimate_asks_for():
    cells = [source(cell) for cell in read(LABS / f"{CHAPTER}.ipynb")["cells"]]
    asked = next(n for n, text in enumerate(cells) if 'Estimate("47.sort"' in text)
    assert "peaked" in cells[asked - 1]  # measured there
    assert not any("peaked" in text for text in cells[asked:])


def test_the_break_even_is_seconds_over_seconds_saved_per_token():
    assert break_even_tokens(30.0, 0.010, 0.009, rows=8) == pytest.approx(8 * 30.0 / 0.001)
    assert break_even_tokens(30.0, 0.010, 0.010, rows=8) is None
    assert break_even_tokens(30.0, 0.010, 0.011, rows=8) is None


def test_the_recording_says_where_it_is_from_and_its_break_even_is_computed():
    recorded = json.loads((LABS / "recorded" / "47_compile.json").read_text())
    for name in ("machine", "versions", "commit", "date", "threads", "dtype", "model_id"):
        assert recorded[name], name
    cold, warm = recorded["compilation"]["cold"], recorded["compilation"]["warm"]
    assert recorded["same_tokens"] and cold["from_cache"] == 0 < warm["from_cache"]
    assert warm["compile_s"] < cold["compile_s"]
    for step in recorded["steps"]:
        seconds = {name: each["median"] for name, each in step["step_s"].items()}
        for kind, each in recorded["compilation"].items():
            assert step["break_even_tokens"][kind] == break_even_tokens(
                each["compile_s"], seconds["eager"], seconds["compiled"], step["rows"]
            )
