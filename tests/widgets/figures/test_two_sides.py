"""What holds for every figure of two sides: as wide as the page, readable, told apart in print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import figures, theme
from widgets.figures import LabFigure, render

TWO_SIDES = {
    "completions": figures.completions,
    "kv_bytes": figures.kv_bytes,
    "latency": figures.latency,
    "memory_shares": figures.memory_shares,
    "parking_lot": figures.parking_lot,
    "recompute_triangle": figures.recompute_triangle,
    "slots": figures.slots,
    "stage_shares": figures.stage_shares,
    "step_rows": figures.step_rows,
    "throughput": figures.throughput,
    "timeline": figures.timeline,
    "typewriters": figures.typewriters,
}
NAMES = {"A": "first side", "B": "second side"}


@pytest.fixture(scope="module")
def sides() -> dict[str, RunTrace]:
    return {NAMES["A"]: runs.preempting_run(), NAMES["B"]: runs.echo_run()}


@pytest.fixture(params=TWO_SIDES)
def drawn(request: pytest.FixtureRequest, sides: dict[str, RunTrace]) -> LabFigure:
    return TWO_SIDES[request.param](sides)


def test_the_table_holds_every_figure_of_runs() -> None:
    """A new figure joins it, or this list of those that compare no sides in one drawing."""
    others = {"LabFigure", "Delivery", "RadixTree", "RooflinePoint", "Run", "Runs", "Side"}
    others |= {"idle_sessions", "page_map", "radix_tree", "roofline_chart", "roofline_points"}
    others |= {"stage_seconds", "typed"}
    assert set(figures.__all__) - others == set(TWO_SIDES)


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
