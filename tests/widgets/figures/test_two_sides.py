"""What holds for every figure of two sides: as wide as the page, readable, told apart in print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go
import pytest

from minserve.trace import TraceSnapshot
from tests.widgets.figures import runs
from tests.widgets.figures.every import FIGURES, OF_ONE_RUN, Call
from widgets import theme
from widgets.figures import LabFigure, render
from widgets.figures.strips import strips
from widgets.metrics import METRICS

BESIDE = {"idle_sessions", "roofline_chart"}
"""Sides stand beside each other in panels of their own."""

TWO_SIDES: Mapping[str, Call] = {
    name: call for name, call in FIGURES.items() if name not in {*OF_ONE_RUN, *BESIDE}
} | {"strips": lambda sides: strips(sides, METRICS["itl_max_s"])}
NAMES = {"A": "first side", "B": "second side"}


@pytest.fixture(scope="module")
def sides() -> dict[str, TraceSnapshot]:
    first, second = runs.preempting_run(), runs.echo_run()
    return {NAMES["A"]: first.snapshot(), NAMES["B"]: second.snapshot()}


@pytest.fixture(params=TWO_SIDES)
def drawn(request: pytest.FixtureRequest, sides: dict[str, TraceSnapshot]) -> LabFigure:
    return TWO_SIDES[request.param](sides)


def test_a_figure_is_as_wide_as_its_page(drawn: LabFigure) -> None:
    assert drawn.figure.layout.width is None
    assert drawn.figure.layout.height
    assert render.CONFIG["responsive"] is True


def _fonts(part: Any) -> Iterator[str]:
    """Every colour of text in a figure's JSON."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("font", "textfont", "tickfont") and isinstance(value, dict):
                colours = value.get("color", ())
                yield from [colours] if isinstance(colours, str) else colours
            yield from _fonts(value)
    elif isinstance(part, list):
        for each in part:
            yield from _fonts(each)


def test_text_has_a_colour_that_pages_make_readable(drawn: LabFigure) -> None:
    plain = drawn.figure.to_plotly_json()
    plain["layout"].pop("template", None)
    on_bars = {"#000000", "#ffffff"}  # `theme.on`: chosen for what is behind them.
    assert set(_fonts(plain)) <= {theme.INK, *theme.TEXT_COLOURS, *on_bars}


def _colours(trace: Any) -> set[str]:
    marker = trace.marker.color if getattr(trace, "marker", None) else None
    line = trace.line.color if getattr(trace, "line", None) else None
    return {colour for colour in (marker, line) if isinstance(colour, str)}


def _features(trace: Any) -> Iterator[tuple[str, str]]:
    """What one sees of a trace without colour."""
    mode = getattr(trace, "mode", None) or ""
    if "lines" in mode:
        yield "dash", trace.line.dash or "solid"
    if "markers" in mode:
        yield "symbol", trace.marker.symbol or "circle"
    pattern = getattr(trace.marker, "pattern", None) if trace.type == "bar" else None
    if pattern is not None:
        yield "pattern", f"{pattern.shape}"


def test_sides_in_one_panel_differ_in_more_than_colour(drawn: LabFigure) -> None:
    seen: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for trace in drawn.figure.data:
        for key, colour in theme.SIDES.items():
            if colour in _colours(trace):
                panel = f"{getattr(trace, 'xaxis', None) or 'x'}"
                seen.setdefault((panel, key), set()).update(_features(trace))
    for panel, key in seen:
        if key == "A" and (panel, "B") in seen:
            assert seen[panel, "A"] != seen[panel, "B"]


def test_a_label_in_a_sides_colour_names_the_side(drawn: LabFigure) -> None:
    colours = {theme.SIDES[key]: name for key, name in NAMES.items()}
    for note in drawn.figure.layout.annotations:
        if note.font.color in colours:
            assert colours[note.font.color] in note.text


def test_both_sides_are_named(drawn: LabFigure) -> None:
    text = drawn.figure.to_json()
    for name in NAMES.values():
        assert name in text


def test_colour_alone_is_noticed() -> None:
    """The check above can fail: two lines of one dash and no marks."""
    figure = go.Figure()
    for key in ("A", "B"):
        figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": theme.SIDES[key]})
    with pytest.raises(AssertionError):
        test_sides_in_one_panel_differ_in_more_than_colour(LabFigure(figure, "", "", ""))
