"""What holds for every figure of runs: no sentence before the end, one width of a second, the
extremes among what is drawn, units and origin on every axis, sides told apart without colour."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from minserve.trace import TraceSnapshot
from tests.widgets.figures import runs
from tests.widgets.figures.every import (
    ELSEWHERE,
    EXPORTED,
    FIGURES,
    OF_ONE_RUN,
    WITHOUT_RUNS,
    Call,
    Given,
)
from widgets import theme

FEW_MARKS = 24
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
two_sided = pytest.mark.parametrize(
    "draw",
    [call for name, call in FIGURES.items() if name not in OF_ONE_RUN],
    ids=[name for name in FIGURES if name not in OF_ONE_RUN],
)


@pytest.fixture(scope="module")
def whole() -> dict[str, TraceSnapshot]:
    """A short run and a far longer one."""
    return {"slow": runs.preempting_run().snapshot(), "fast": runs.echo_run().snapshot()}


@pytest.fixture(scope="module")
def large() -> dict[str, TraceSnapshot]:
    return {"many": runs.many_requests().snapshot(), "fewer": runs.many_requests(50).snapshot()}


def test_all_exported_figures_are_covered() -> None:
    assert {*FIGURES, *WITHOUT_RUNS, *ELSEWHERE} >= EXPORTED
    assert len(FIGURES) >= 14


@every_figure
def test_a_run_that_has_not_ended_gets_no_sentence(draw: Call, whole: Given) -> None:
    half = {name: runs.half(run) for name, run in whole.items()}
    assert not any(run.is_complete for run in half.values())
    assert draw(whole).takeaway.strip(), "and one that has ended gets one"
    assert draw(half).takeaway == ""
    first, second = whole
    assert draw({first: half[first], second: whole[second]}).takeaway == ""


@two_sided
def test_a_run_that_has_not_ended_claims_nothing_inside_the_plot(draw: Call, whole: Given) -> None:
    half = {name: runs.half(run) for name, run in whole.items()}
    for words in _words(draw(half).figure):
        assert not re.search(r"busy|mean|median|less|more|faster|slower", words), words


@two_sided
def test_equal_seconds_are_equally_wide(draw: Call, whole: Given) -> None:
    figure = draw(whole).figure
    ranges = {_range(figure, axis) for axis in _axes(figure, "xaxis") if axis.visible is not False}
    assert len(ranges) <= 1, "all sides share one range"


@two_sided
def test_the_shared_axis_holds_both_sides(draw: Call, whole: Given) -> None:
    figure = draw(whole).figure
    for axis in _axes(figure, "xaxis"):
        found = _range(figure, axis)
        if axis.type == "log" or found is None or not isinstance(found[0], float):
            continue
        low, high = found
        ends = _ends(figure)
        assert low <= ends["x"][0] + 1e-9 and ends["x"][1] <= high + 1e-9


@every_figure
def test_what_is_left_out_is_never_an_extreme_and_is_said(
    draw: Call, large: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = draw(large)
    monkeypatch.setattr(theme, "MAX_MARKS", FEW_MARKS)
    drawn = draw(large)
    if _same_marks(complete.figure, drawn.figure):
        return
    if "Windows of" in drawn.caption:
        return  # summed, and said: nothing is left out
    said = r"\d of [\d,]+ \w[\w ]* drawn; the largest and smallest are kept"
    assert re.search(said, drawn.caption)
    for axis, (low, high) in _ends(complete.figure).items():
        if axis == "y" and drawn.figure.layout.yaxis.title.text in NAMES:
            continue  # rows of requests: fewer of them
        found = _ends(drawn.figure)[axis]
        assert found == pytest.approx((low, high), rel=1e-9), axis


def test_most_figures_leave_something_out_of_a_large_run(
    large: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = {name: draw(large).figure for name, draw in FIGURES.items()}
    monkeypatch.setattr(theme, "MAX_MARKS", FEW_MARKS)
    thinned = {
        name
        for name, draw in FIGURES.items()
        if not _same_marks(complete[name], draw(large).figure)
    }
    assert {"completions", "kv_bytes", "latency", "recompute_triangle", "typewriters"} <= thinned


@every_figure
def test_every_axis_has_a_unit_and_says_where_its_numbers_come_from(
    draw: Call, whole: Given
) -> None:
    figure = draw(whole).figure
    for axis in [*_axes(figure, "xaxis"), *_axes(figure, "yaxis")]:
        title = axis.title.text
        if axis.visible is False or not title or title in NAMES:
            continue
        assert re.search(r"\((.*, )?(%|measured|modelled|recorded|counted)", title), title


NAMES = {"request", "slot", "page"}
"""Axes that name things: nothing is measured along them."""


@every_figure
def test_log_axes_are_labelled_in_decimals(draw: Call, large: Given) -> None:
    figure = draw(large).figure
    for axis in [*_axes(figure, "xaxis"), *_axes(figure, "yaxis")]:
        if axis.type == "log":
            assert axis.ticktext, "labels are written out"
            assert all(re.fullmatch(r"[\d,]+(\.\d+)?", text) for text in axis.ticktext)


@every_figure
def test_ratios_in_words_are_above_one(draw: Call, whole: Given) -> None:
    first, second = whole
    for runs_ in (whole, {second: whole[second], first: whole[first]}):
        assert not re.search(r"\b0(\.\d+)?x", draw(runs_).takeaway)


@two_sided
def test_sides_are_told_apart_without_colour(draw: Call, whole: Given) -> None:
    figure = draw(whole).figure
    titled = {str(note.text) for note in figure.layout.annotations}
    if all(any(text.startswith(name) for text in titled) for name in whole):
        return  # a panel for each side, with its name
    ticks = {str(y) for trace in figure.data if trace.type == "bar" for y in trace.y or ()}
    if set(whole) <= ticks:
        return  # a bar for each side, beside its name
    marked = {
        (trace.marker.symbol, trace.name or trace.text)
        for trace in figure.data
        if trace.type == "scatter" and "markers" in (trace.mode or "")
    }
    assert len({symbol for symbol, _ in marked}) >= 2, "a symbol for each side"


def _axes(figure: Any, kind: str) -> list[Any]:
    return [figure.layout[name] for name in figure.layout if name.startswith(kind)]


def _range(figure: Any, axis: Any) -> tuple[Any, ...] | None:
    """The range of an axis, or that of the axis it matches."""
    if axis.range is not None:
        return tuple(axis.range)
    if axis.matches is not None:
        return _range(figure, figure.layout["xaxis" + axis.matches.removeprefix("x")])
    # Left to plotly: each panel would find its own.
    return ("own", id(axis))


def _numbers(values: Any) -> Iterator[float]:
    for value in values if values is not None else ():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield float(value)


def _ends(figure: Any) -> dict[str, tuple[float, float]]:
    """The smallest and largest that is drawn along each axis."""
    found: dict[str, list[float]] = {"x": [], "y": []}
    for trace in figure.data:
        if trace.type == "bar" and trace.base is not None:
            base = list(_numbers(trace.base))
            found["x"] += [*base, *(a + b for a, b in zip(base, _numbers(trace.x), strict=False))]
        else:
            found["x"] += _numbers(trace.x)
        found["y"] += _numbers(trace.y)
    return {axis: (min(some), max(some)) for axis, some in found.items() if some}


def _same_marks(one: Any, other: Any) -> bool:
    def count(figure: Any) -> int:
        return sum(len(trace.x) for trace in figure.data if trace.x is not None)

    return count(one) == count(other)


def _words(figure: Any) -> Iterator[str]:
    yield from (note.text for note in figure.layout.annotations)
    yield from (trace.name for trace in figure.data if trace.name and trace.showlegend is not False)
