"""One knob and one metric, measured and modelled; and what binds a step."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minserve import ConfigError
from minserve.bench.interleave import Spread
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from tests.widgets.panels.tiny_runs import BASE, STATIC, tiny
from widgets import theme
from widgets.crossing import crossing
from widgets.metrics import FASTER, Metric
from widgets.panels import Compare, Roofline, Sweep
from widgets.panels.comparison.sides import Sides
from widgets.panels.sweeps.figure import sweep_figure
from widgets.panels.sweeps.result import SweepResult
from widgets.workers import Job, Worker, raise_panel_errors

COST = CostModel(DEVICES["H100 SXM"], "float32", overhead_s=1e-4)
SWITCH = {"scheduling.policy": "continuous"}


def lengths(longest: int):
    return tiny(6, (2, longest))


def test_a_field_is_swept_with_its_spread_and_a_modelled_line():
    panel = Sweep(BASE, "scheduling.max_num_seqs", [1, 2, 4], tiny(), rounds=3, modelled=COST,
                  metric="duration_s")  # fmt: skip
    drawn = []
    draw = panel.view.draw
    panel.view.draw = lambda figure, **how: drawn.append(figure) or draw(figure, **how)
    panel.run_button.click()
    assert panel.wait(60)
    raise_panel_errors()
    result = panel.result
    assert list(result.points) == [1, 2, 4]
    assert all(len(spread.values) == 3 for spread in result.points.values())
    assert result.modelled[4] < result.modelled[1]
    figure = panel.view.shown.figure
    dashes = {trace.name: trace.line.dash for trace in figure.data if trace.mode}
    assert dashes["measured"] == "solid" and dashes["modelled"] == "dash"
    assert "max_num_seqs" in panel.view.shown.takeaway
    assert len(drawn) >= 1 and panel.view.shown.alt and len(panel.view.shown.table) == 3
    assert set(result.facts()) == {
        f"time for the whole workload (modelled) at scheduling.max_num_seqs = {n}"
        for n in (1, 2, 4)
    }


def test_counts_are_bars_and_facts(headless):
    panel = Sweep(BASE, "memory.block_size", [4, 16], tiny(), rounds=3, metric="peak_kv_bytes")
    panel.run()
    assert panel.result.exact
    assert [trace.type for trace in panel.view.shown.figure.data] == ["bar"]
    assert len(panel.facts()) == 2


def test_with_a_switch_the_line_is_a_ratio_with_its_crossover(headless):
    panel = Sweep(STATIC, "longest", [2, 6], lengths, switch=SWITCH, metric="steps", rounds=3)
    panel.run()
    result = panel.result
    assert result.is_ratio and result.points[6].median < result.points[2].median
    assert "“on”" in panel.view.shown.takeaway
    assert result.crossover == pytest.approx(2.0)
    mark = next(t for t in panel.view.shown.figure.data if t.name == "crossover")
    assert mark.textposition == "bottom right", "the line rises there: not over it"


@pytest.mark.parametrize(
    ("points", "place"),
    [
        ({1: 0.5, 4: 2.0}, 2.0),
        ({1: 0.5, 100: 0.9}, None),
        ({0: 2.0, 10: 0.5}, 5.0),
        ({4: 2.0, 1: 0.5}, 2.0),
        ({"a": 0.5, "b": 2.0}, None),
        ({1: 0.5, 4: 1.0}, 4.0),
        ({1: 1.0, 4: 2.0}, 1.0),
    ],
)
def test_the_crossover_lies_between_measured_values(points, place):
    found = crossing(points)
    assert found == (pytest.approx(place) if place is not None else None)


def test_on_the_virtual_clock_a_sweep_is_all_facts(headless, monkeypatch):
    monkeypatch.setenv("MINSERVE_CLOCK", "virtual")
    panel = Sweep(BASE, "scheduling.policy", ["static", "continuous"], tiny(), modelled=COST)
    panel.run()
    result = panel.result
    assert result.exact and result.points["continuous"].values[1:] == ()
    trace = panel.view.shown.figure.data[0]
    assert trace.line.dash == "dash" and list(trace.x) == ["continuous", "static"]


@pytest.mark.parametrize(("metric", "kind"), [("flops", "counted"), ("duration_s", "modelled")])
def test_a_count_stays_a_count_on_the_virtual_clock(headless, metric, kind):
    panel = Sweep(STATIC, "longest", [2, 6], lengths, switch=SWITCH, metric=metric, modelled=COST,
                  clock="virtual")  # fmt: skip
    panel.run()
    names = {trace.name for trace in panel.view.shown.figure.data}
    assert kind in names and {"counted", "modelled"} & names == {kind}
    caption = panel.view.shown.caption
    assert caption.startswith("Counted, in runs on modelled time.") == (kind == "counted")
    assert all(f"({kind})" in fact for fact in panel.result.facts())


def test_a_function_may_be_the_model_and_a_mask_hides_the_line(headless):
    panel = Sweep(
        BASE, "memory.block_size", [8, 16], tiny, rounds=3, modelled=lambda size: 2 * size
    )
    panel.mask("me", "later")
    panel.run()
    assert panel.result.modelled == {8: 16.0, 16: 32.0}
    assert panel.outcome.widget not in panel._slot.children
    panel.unmask("me")
    assert panel.outcome.widget in panel._slot.children


def test_a_sweep_can_be_stopped():
    panel = Sweep(BASE, "memory.block_size", [8, 16], tiny(4, (40, 40)), rounds=50)
    panel.run()
    while panel.worker.state != "running":
        pass
    panel.stop_button.click()
    assert panel.wait(5)
    assert panel.worker.state == "stopped" and panel.last is None


def test_values_that_cannot_work_are_refused_before_anything_runs(headless):
    panel = Sweep(BASE, "scheduling.max_model_len", [64, 10**6], tiny(), rounds=3)
    with pytest.raises(ConfigError, match="positions"):
        panel.run()
    panel.run_button.click()
    assert "positions" in panel.problem.value
    with pytest.raises(ValueError, match="no parameters"):
        Sweep(BASE, "lenght", [1, 2], tiny())
    with pytest.raises(ValueError, match="at least two"):
        Sweep(BASE, "memory.block_size", [16], tiny())
    with pytest.raises(ValueError, match="3 rounds"):
        Sweep(BASE, "memory.block_size", [8, 16], tiny(), rounds=2)


def swept(gains, better="higher", **more):
    """A ratio sweep that found these gains."""
    ratios = {at: gain if better == "higher" else 1 / gain for at, gain in gains.items()}
    metric = Metric("speed", "speed", better, lambda run: None, str, words=FASTER)
    points = {at: Spread.of([ratio] * 3) for at, ratio in ratios.items()}
    return SweepResult("size", "tokens", metric, ("off", "on"), points, {}, {}, True, **more)


@pytest.mark.parametrize(
    ("seconds", "ticks"),
    [
        ((0.011, 0.018, 0.023), ["0 s", "10 ms", "20 ms"]),
        ((0.0009, 0.03, 1.4), ["1 ms", "3 ms", "10 ms", "30 ms", "100 ms", "300 ms", "1 s"]),
        ((0.0, 0.0, 0.0), None),
    ],
)
def test_one_sides_axis_has_the_unit_of_its_metric(seconds, ticks):
    metric = Metric("time", "time", "lower", lambda run: None, theme.format_seconds)
    points = {at: Spread.of([value]) for at, value in enumerate(seconds)}
    result = SweepResult("size", "tokens", metric, ("it",), points, {}, {}, False)
    axis = sweep_figure(result).figure.layout.yaxis
    assert (axis.ticktext and list(axis.ticktext)) == ticks


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_gain_is_drawn_above_1_where_the_second_side_wins(better):
    result = swept({1: 4.0, 4: 2.0, 16: 0.5}, better)
    drawn = sweep_figure(result)
    assert list(drawn.figure.data[0].y) == pytest.approx([4.0, 2.0, 0.5])
    assert result.crossover == pytest.approx(8.0)
    mark = next(trace for trace in drawn.figure.data if trace.name == "crossover")
    assert list(mark.x) == pytest.approx([8.0]) and list(mark.y) == [1.0]
    assert "equal near 8" in drawn.takeaway and "4x faster at size = 1" in drawn.takeaway
    texts = " ".join(
        [drawn.takeaway, drawn.alt, str(drawn.table), *drawn.figure.layout.yaxis.ticktext]
    )
    assert not re.search(r"\b0\.\d+x", texts), "no factor below 1"
    wins = {note.text for note in drawn.figure.layout.annotations}
    assert wins == {"“on” wins", "“off” wins"}


@pytest.mark.parametrize(
    ("gains", "place", "beside"),
    [
        ({0: 1.0, 4: 2.0}, 0, "bottom right"),
        ({0: 1.0, 4: 0.5}, 0, "top right"),
        ({1: 0.5, 4: 1.0}, 4, "top left"),
        ({1: 2.0, 4: 1.0}, 4, "bottom left"),
    ],
)
def test_a_crossover_at_an_end_is_named_exactly_and_inside_the_figure(gains, place, beside):
    drawn = sweep_figure(swept(gains))
    mark = next(trace for trace in drawn.figure.data if trace.name == "crossover")
    assert list(mark.x) == [place] and mark.textposition == beside
    assert f"equal at {place}." in drawn.takeaway


def test_the_threshold_that_was_asked_about_is_drawn_and_its_crossing_found():
    drawn = sweep_figure(swept({1: 1.1, 4: 1.44}, threshold=1.2))
    assert any(shape.y0 == shape.y1 == 1.2 for shape in drawn.figure.layout.shapes)
    assert "passes 1.2x near" in drawn.takeaway
    assert swept({1: 1.1, 4: 1.19}, threshold=1.2).crossover is None


def test_an_unfinished_sweep_quotes_nothing():
    drawn = sweep_figure(swept({1: 4.0, 16: 0.5}), complete=False)
    assert drawn.takeaway == ""
    assert not any(trace.name == "crossover" for trace in drawn.figure.data)


def test_a_knob_of_the_switch_is_turned_on_its_own_side_only():
    panel = Sweep(
        STATIC, "memory.block_size", [8, 16], tiny(), switch=SWITCH | {"memory.block_size": 4}
    )
    off, on = panel.configs(16).values()
    assert (off.memory.block_size, on.memory.block_size) == (STATIC.memory.block_size, 16)
    assert on.scheduling.policy == "continuous"


def limits() -> Any:
    """A machine that was not measured: that takes seconds, and twenty beside other work."""
    return SimpleNamespace(
        processor="a test's machine",
        threads=1,
        date="2026-11-21",
        disturbed=False,
        bandwidth=(SimpleNamespace(working_set_bytes=1 << 20),),
        bytes_per_s=lambda working_set: 2e10,
        flops_per_s=lambda dtype: 1e11,
    )


@pytest.fixture
def ceilings() -> Any:
    return limits()


@pytest.fixture
def trace():
    sides = Sides("zoo/base", {"one": BASE})
    return sides.run("one", tiny(), Job(Worker("test"))).trace


def test_shares_add_up_and_the_gpu_can_be_changed(trace, ceilings):
    panel = Roofline(trace, ceilings=ceilings)
    panel.run_button.click()
    assert panel.wait(30)
    raise_panel_errors()
    result = panel.result
    assert {each.kind for each in result.shares} == {"prefill", "decode"}
    for each in result.shares:
        assert each.measured_s > 0 and each.bound_s >= max(each.arithmetic_s, each.bytes_s) * 0.999
        assert each.overhead_s == pytest.approx(max(0.0, each.measured_s - each.bound_s))
        assert each.binds in ("arithmetic", "bytes", "overhead")
    assert result.on(DEVICES["H100 SXM"])["", "decode"] == "bytes"
    assert "H100 SXM" in panel.table.value
    panel.gpu.value = "H200"
    assert "H200" in panel.table.value and "H200" in panel.chart.shown.alt
    panel.gpu.value = "A10G"
    assert "no sourced figure" in panel.problem.value
    panel.gpu.value = "T4"
    assert panel.problem.value == ""
    assert panel.facts()["prefill, FLOPs per byte"] > panel.facts()["decode, FLOPs per byte"]


def test_a_comparison_or_a_function_may_be_the_source(headless, ceilings, trace):
    compare = Compare(STATIC, SWITCH, tiny(), rounds=3)
    compare.run()
    panel = Roofline(compare, ceilings=ceilings)
    panel.run()
    assert {each.side for each in panel.result.shares} == {"off", "on"}
    panel = Roofline(lambda: trace, ceilings=ceilings)
    panel.run()
    assert {each.side for each in panel.result.shares} == {""}


def test_the_machine_is_measured_once_in_the_runs_number_format(headless, trace, monkeypatch):
    asked = []

    def measure(device, *, dtypes):
        asked.append((device, dtypes))
        return limits()

    monkeypatch.setattr("widgets.panels.roofline.machine_ceilings", measure)
    panel = Roofline(trace)
    for _ in range(2):
        panel.run()
        assert panel.result.ceilings.processor == "a test's machine"
    assert asked == [("cpu", ("float32",))]


def test_without_steps_there_is_nothing_to_look_at(headless, ceilings):
    from minserve.trace import RunTrace

    panel = Roofline(RunTrace(), ceilings=ceilings)
    panel.run()
    with pytest.raises(ValueError, match="run something first"):
        _ = panel.result
    assert torch.get_num_threads() >= 1
