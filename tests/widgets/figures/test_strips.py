"""The figure a comparison opens with: the headline's samples, memory and price on one clock."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import theme
from widgets.figures.strip_rows import apart
from widgets.figures.strips import strips
from widgets.metrics import METRICS, Metric


@pytest.fixture(scope="module")
def sides() -> dict[str, RunTrace]:
    return {"plain": runs.echo_run(), "tight": runs.preempting_run()}


def lines(figure) -> list:
    return [trace for trace in figure.data if trace.type == "scatter"]


def labels(drawn) -> str:
    return " ".join(note.text or "" for note in drawn.figure.layout.annotations)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_drawn_with_the_value_that_is_quoted(sides, name):
    metric = METRICS[name]
    drawn = strips(sides, metric)
    for side, trace in sides.items():
        value = metric.read(trace)
        assert value is not None
        assert metric.show(value) in labels(drawn), side
        assert metric.show(value) in drawn.alt
        assert metric.read(trace.snapshot()) == value
    assert drawn.takeaway == ""


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.style == "dots"])
def test_the_level_line_stands_at_the_value_and_dots_are_the_samples(sides, name):
    metric = METRICS[name]
    assert metric.samples is not None
    drawn = strips(sides, metric).figure
    highest = max(v for t in sides.values() for _, v in metric.samples(t))
    scale, _ = theme.time_unit(highest)
    for side, trace in sides.items():
        value = metric.read(trace)
        assert value is not None
        level = [t for t in lines(drawn) if t.mode == "lines" and len(t.x) == 2 and t.yaxis == "y"]
        assert any(list(t.y) == pytest.approx([value * scale] * 2) for t in level), side
        dots = next(t for t in lines(drawn) if t.name == side and t.mode == "markers")
        assert sorted(dots.y) == pytest.approx(sorted(v * scale for _, v in metric.samples(trace)))


def test_equal_seconds_are_equally_wide_and_the_longer_run_fits(sides):
    layout = strips(sides, METRICS["itl_max_s"]).figure.layout
    assert layout.xaxis.range == layout.xaxis2.range
    longest = max(trace.totals.duration_s for trace in sides.values())
    factor, _ = theme.time_unit(longest)
    assert layout.xaxis.range[1] == pytest.approx(longest * factor * 1.01)


def test_memory_is_drawn_as_it_was_counted(sides):
    drawn = strips(sides, METRICS["steps"]).figure
    for side, trace in sides.items():
        owned = next(t for t in drawn.data if t.name == f"{side} allocated")
        divisor, _ = theme.byte_unit(max(t.totals.peak_kv_bytes_allocated for t in sides.values()))
        assert max(owned.y) * divisor == pytest.approx(trace.totals.peak_kv_bytes_allocated)


def test_a_long_memory_label_has_room_beside_the_strip(sides):
    name = "a side with a name of some length"
    drawn = strips({name: sides["plain"], "b": sides["tight"]}, METRICS["steps"]).figure
    longest = max(
        (note.text for note in drawn.layout.annotations if "allocated" in (note.text or "")),
        key=len,
    )
    narrow = strips(sides, METRICS["steps"]).figure.layout.margin.r
    assert name in longest and drawn.layout.margin.r >= 6 * len(longest) > narrow


def test_host_bytes_are_drawn_in_the_unit_of_the_axis():
    run = runs.preempting_run().snapshot()
    steps = [replace(step, blocks=replace(step.blocks, host_bytes=3_000_000)) for step in run.steps]
    drawn = strips({"on": replace(run, steps=tuple(steps))}, METRICS["itl_max_s"])
    host = next(trace for trace in lines(drawn.figure) if "in host memory" in (trace.name or ""))
    assert set(host.y) == {3.0} and drawn.figure.layout.yaxis2.title.text == "MB"
    assert "3 MB in host memory" in labels(drawn)


def test_a_run_without_time_has_an_axis_all_the_same():
    nothing = strips({"off": RunTrace()}, METRICS["steps"], complete=False).figure.layout
    assert list(nothing.xaxis.range) == [0, 1.0] and list(nothing.yaxis2.range) == [0, 1.0]


def test_the_price_is_drawn_where_a_side_pays_it(sides):
    tight = sides["tight"].totals
    drawn = strips(sides, METRICS["steps"])
    bars = {t.name: t for t in drawn.figure.data if t.type == "bar"}
    assert set(bars) == {"plain", "tight"}
    at = list(bars["tight"].y).index("tokens computed again")
    assert bars["tight"].text[at] == f"tokens computed again: {tight.recomputed_tokens} (tight)"
    assert bars["tight"].x[at] == 1.0 and bars["plain"].x[at] == 0.0
    without = strips({"plain": sides["plain"]}, METRICS["steps"])
    assert not any(t.type == "bar" for t in without.figure.data)


def test_a_run_under_way_is_drawn_without_a_value(sides):
    drawn = strips(sides, METRICS["ttft_p50_s"], complete=False)
    assert "<b>" not in labels(drawn) and drawn.takeaway == ""
    # Nor to a reader who hears the figure, or opens its table.
    metric = METRICS["ttft_p50_s"]
    assert drawn.alt.count(f"{metric.label} nothing yet") == 2
    assert [row[metric.label] for row in drawn.table] == ["", ""]
    assert any(t.mode == "markers" and len(t.x) for t in lines(drawn.figure))
    nothing = strips({"off": RunTrace()}, METRICS["ttft_p50_s"], complete=False)
    assert not nothing.figure.data or all(not len(t.x or ()) for t in nothing.figure.data)


def test_sides_differ_by_more_than_their_colour(sides):
    drawn = strips(sides, METRICS["itl_max_s"]).figure
    symbols = {t.name: t.marker.symbol for t in lines(drawn) if t.mode == "markers"}
    assert len(set(symbols.values())) == 2
    patterns = {t.name: t.fillpattern.shape for t in drawn.data if (t.name or "").endswith("used")}
    assert len(set(patterns.values())) == 2


def test_many_samples_are_thinned_and_the_caption_says_so():
    long = runs.echo_run(prompt_lengths=(5,) * 6, max_tokens=(110,) * 6, num_blocks=400)
    metric = METRICS["itl_max_s"]
    assert metric.samples is not None and len(metric.samples(long)) > theme.MAX_MARKS
    drawn = strips({"long": long}, metric)
    dots = next(t for t in lines(drawn.figure) if t.mode == "markers")
    assert theme.MAX_MARKS - 5 < len(dots.x) <= theme.MAX_MARKS
    assert "samples drawn" in drawn.caption
    scale, _ = theme.time_unit(max(v for _, v in metric.samples(long)))
    assert max(dots.y) == pytest.approx(scale * max(v for _, v in metric.samples(long)))


def test_a_metric_without_samples_is_refused(sides):
    flat = Metric("flat", "flat", "lower", lambda run: 1.0, str)
    with pytest.raises(ValueError, match="samples"):
        strips(sides, flat)


@pytest.mark.parametrize(
    "heights",
    [[0.5], [0.5, 0.5], [1.0, 0.99, 0.98], [0.0, 0.0], [0.2, 0.9], [0.9, 0.95, 0.1, 0.92]],
)
def test_labels_move_apart_and_keep_their_order_and_their_strip(heights):
    found = apart(heights, 0.2)
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    for below, above in itertools.pairwise(order):
        assert found[above] - found[below] >= 0.2 - 1e-9
    assert max(found) <= 1.0 and min(found) >= 0.0
    if len(heights) == 2 and heights[1] - heights[0] > 0.2:
        assert found == heights


def test_without_a_cache_nothing_is_drawn_as_allocated():
    off, on = runs.without_cache(), runs.with_cache()
    # Pages hold the step's own keys and values, and are free again when it ends.
    assert off.totals.peak_kv_bytes_allocated > 0 == off.totals.peak_kv_bytes_used
    drawn = strips({"off": off, "on": on}, METRICS["steps"])
    lines_of = {trace.name: trace for trace in drawn.figure.data}
    assert set(lines_of["off allocated"].y) == set(lines_of["off used"].y) == {0}
    assert max(lines_of["on allocated"].y) > 0
    assert "off: 0 bytes kept" in labels(drawn)
    assert drawn.table[0]["KV memory, peak"] == "0 bytes kept"
    assert "0 bytes kept" in drawn.alt and "allocated" in drawn.table[1]["KV memory, peak"]
