"""A reader's rule beside the worked solution's, as two lines over the same steps or cases.

Knows no exercise: titles and numbers are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from widgets import theme
from widgets.figures.lab_figure import LabFigure

YOURS, WORKED = "yours", "worked solution"
_HEIGHT = 300


def answers(
    title: str,
    x: str,
    y: str,
    yours: Sequence[float],
    worked: Sequence[float] = (),
    at: Sequence[float] = (),
    caption: str = "",
) -> LabFigure:
    """Both rules' numbers. `at` are places on the x axis; left out, they count from 1.

    Told apart by line and marker as well as by colour; only lines where there are many points.
    """
    sides = [(YOURS, tuple(yours))] + ([(WORKED, tuple(worked))] if worked else [])
    colours = theme.side_colours(["A", "B"])
    most = max((len(values) for _, values in sides), default=0)
    places = list(at) or list(range(1, most + 1))
    figure = go.Figure()
    looks: dict[str, dict[str, object]] = {
        YOURS: {"line": {"color": colours["B"], "width": 2}, "marker": {"symbol": "circle"}},
        WORKED: {
            "line": {"color": colours["A"], "width": 2, "dash": "dash"},
            "marker": {"symbol": "x-thin", "line": {"width": 2, "color": colours["A"]}, "size": 8},
        },
    }
    for name, values in sides:  # The dashed line on top: where both agree, both are seen.
        figure.add_trace(
            go.Scatter(
                x=places[: len(values)],
                y=list(values),
                name=name,
                mode="lines+markers" if most <= 60 else "lines",
                **looks[name],
            )
        )
    figure.update_xaxes(title={"text": theme.plot_text(x)})
    figure.update_yaxes(title={"text": theme.plot_text(y)}, rangemode="tozero")
    figure.update_layout(theme.layout(title, height=_HEIGHT))
    rows = [
        {x: f"{places[i]:g}", **{name: _shown(values, i) for name, values in sides}}
        for i in range(most)
    ]
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=_takeaway(yours, worked),
        alt=f"{title}: {y} by {x}, a line for your rule"
        + (" and a dashed one for the worked solution." if worked else "."),
        table=rows,
    )


def _shown(values: Sequence[float], place: int) -> str:
    return f"{values[place]:.6g}" if place < len(values) else "–"


def _takeaway(yours: Sequence[float], worked: Sequence[float]) -> str:
    numbers = [each for each in yours if math.isfinite(each)]
    if not numbers:
        return "Yours gives no number." if yours else ""
    low, high = min(numbers), max(numbers)
    text = f"Yours: {low:.4g} to {high:.4g}" if low != high else f"Yours: always {low:.4g}"
    if not worked:
        return f"{text}."
    if len(yours) != len(worked):
        return f"{text} over {len(yours)} values; the worked solution has {len(worked)}."
    pairs = list(zip(yours, worked, strict=True))
    apart = [
        n for n, (a, b) in enumerate(pairs, start=1) if not abs(a - b) <= 1e-6 * max(1, abs(b))
    ]
    if not apart:
        return f"{text}, the same as the worked solution at all {len(pairs)} places."
    return (
        f"{text}. It differs from the worked solution at {len(apart)} of {len(pairs)} places, "
        f"first at number {apart[0]}."
    )
