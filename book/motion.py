"""What a reader can move in a figure of the book: frames, their labels, and where they begin.

A figure over time, steps or an order of arrivals is revealed along its axis; a sweep is read point
by point; states that were drawn one by one follow each other. Pure functions of plotly figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from widgets import theme

Frame = dict[str, Any]
MAX_STOPS = 60
_COUNTED = ("step", "return")
PACE_MS = 120.0
_REVEALED = re.compile(r"time (since|\()|(engine )?step \(|order of return")
"""How the titles of axes begin that a run moves along."""


@dataclass(frozen=True)
class Motion:
    """Frames in plotly's form (`data`, `traces`, `layout`), with a label each; an empty frame is
    the one before it once more."""

    labels: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    pace_ms: float = PACE_MS
    """Between two frames, when played."""
    start: int = -1
    """The frame that is shown first; -1: the last one."""


@dataclass(frozen=True)
class _Axis:
    name: str
    """plotly's short name: "x", "y2"."""
    across: str
    """The other axis of the same plot."""
    low: float
    high: float
    unit: str


def reveal(figure: go.Figure) -> Motion:
    """Cover what comes after a cursor; nothing where no axis is time, a step or an order."""
    axes = _axes_of_time(figure)
    if not axes:
        return Motion()
    low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
    unit = axes[0].unit
    stops = _stops(low, high, whole=unit in _COUNTED)
    kept = [shape.to_plotly_json() for shape in figure.layout.shapes]
    labels, frames = [], []
    for at in stops:
        covers = [shape for axis in axes for shape in _cover(axis, at)] if at < high else []
        number = f"{at:,.0f}" if at >= 100 or unit in _COUNTED else f"{at:.3g}"
        labels.append(f"{unit} {number}" if unit in _COUNTED else f"{number} {unit}")
        frames.append({"layout": {"shapes": [*kept, *covers]}})
    return Motion(labels, frames)


def along_points(figure: go.Figure, label: str) -> Motion:
    """Read a line point by point: a ring around each, with its words in the legend's place."""
    line = next((t for t in figure.data if t.type == "scatter" and t.customdata is not None), None)
    if line is None:
        return Motion()
    ring = len(figure.data)
    figure.add_scatter(
        x=[line.x[0]], y=[line.y[0]], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"size": 18, "symbol": "circle-open", "color": theme.INK, "line": {"width": 3}},
    )  # fmt: skip
    labels = [f"{label} {x}: {words}" for x, words in zip(line.x, line.customdata, strict=True)]
    frames = [
        {"data": [{"x": [x], "y": [y]}], "traces": [ring]}
        for x, y in zip(line.x, line.y, strict=True)
    ]
    return Motion(labels, frames, pace_ms=700.0, start=0)


def states(labels: Sequence[str], figures: Sequence[go.Figure]) -> Motion:
    """Whole figures one after the other."""
    frames = []
    for figure in figures:
        plot = figure.to_plotly_json()
        moved = {
            name: plot["layout"][name]
            for name in ("title", "annotations", "shapes", "height")
            if name in plot["layout"]
        }
        frames.append({"data": plot["data"], "layout": moved})
    return Motion(list(labels), frames, pace_ms=700.0, start=-1)


def _axes_of_time(figure: go.Figure) -> list[_Axis]:
    """The axes that such a title stands at, or that share the range of one."""
    for letter in "xy":
        titled = {
            axis.plotly_name.replace("axis", ""): title
            for axis in getattr(figure, f"select_{letter}axes")()
            if _REVEALED.match(title := str(axis.title.text or ""))
        }
        if titled:
            unit = _unit(next(iter(titled.values())))
            names = titled.keys() | _matching(figure, letter, titled.keys())
            return list(_drawn_on(figure, letter, names, unit))
    return []


def _matching(figure: go.Figure, letter: str, names: Iterable[str]) -> set[str]:
    found = set(names)
    for axis in getattr(figure, f"select_{letter}axes")():
        name = axis.plotly_name.replace("axis", "")
        if axis.matches in found:
            found.add(name)
        elif name in found and axis.matches:
            found.add(axis.matches)
    return found


def _drawn_on(figure: go.Figure, letter: str, names: Collection[str], unit: str) -> Iterator[_Axis]:
    plots = dict.fromkeys((trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data)
    for x, y in plots:
        name, across = (x, y) if letter == "x" else (y, x)
        ends = _ends(figure, name, letter) if name in names else None
        if ends is not None:
            yield _Axis(name, across, *ends, unit)


def _unit(title: str) -> str:
    for word in _COUNTED:
        if word in title:
            return word
    return title.rsplit("(", 1)[-1].split(",")[0].rstrip(")")


def _ends(figure: go.Figure, name: str, letter: str) -> tuple[float, float] | None:
    """The range that an axis shows: its own, or that of what is drawn on it."""
    axis = figure.layout[f"{letter}axis{name[1:]}"]
    if axis.type in ("log", "category"):
        return None
    if axis.range is not None and None not in axis.range:
        return tuple(sorted(float(end) for end in axis.range))  # type: ignore[return-value]
    numbers: list[float] = []
    for trace in figure.data:
        if (trace[f"{letter}axis"] or letter) != name:
            continue
        values = trace[letter]
        bases = getattr(trace, "base", None)
        for place, value in enumerate(values if values is not None else ()):
            if not isinstance(value, int | float) and not hasattr(value, "item"):
                continue
            numbers.append(float(value))
            along = getattr(trace, "orientation", None) == ("h" if letter == "x" else "v")
            if bases is not None and along and not isinstance(bases, int | float | str):
                numbers[-1] += float(bases[place])
                numbers.append(float(bases[place]))
    numbers = [number for number in numbers if math.isfinite(number)]
    return (min(0.0, *numbers), max(numbers)) if numbers and max(numbers) > 0 else None


def _stops(low: float, high: float, *, whole: bool) -> list[float]:
    count = min(MAX_STOPS, max(2, int(high - low))) if whole else MAX_STOPS
    stops = [low + (high - low) * n / count for n in range(1, count)]
    if whole:
        stops = sorted({float(round(stop)) for stop in stops} - {low, high})
    return [*stops, high]


def _cover(axis: _Axis, at: float) -> list[dict[str, Any]]:
    along, across = ("x", "y") if axis.name[0] == "x" else ("y", "x")
    place = {f"{along}ref": axis.name, f"{across}ref": f"{axis.across} domain",
             f"{across}0": 0, f"{across}1": 1, "layer": "above"}  # fmt: skip
    veil = {"type": "rect", f"{along}0": at, f"{along}1": axis.high, "fillcolor": theme.VEIL,
            "line": {"width": 0}}  # fmt: skip
    cursor = {"type": "line", f"{along}0": at, f"{along}1": at, "line": theme.CURSOR}
    return [place | veil, place | cursor]
