"""The figure of a sweep: a measured line with its spread, a modelled one dashed.

A pure function of the result. Knows nothing about runs or widgets.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures.lab_figure import LabFigure
from widgets.panels.sweep_result import SweepResult
from widgets.provenance import Provenance


def sweep_figure(result: SweepResult) -> LabFigure:
    """Draw a sweep, complete or not yet. Raises ValueError where nothing was measured."""
    if not result.points:
        raise ValueError("a sweep's figure needs at least one measured value")
    values = sorted(result.points, key=_order)
    numeric = all(_is_number(value) for value in values)
    side = "B" if result.is_ratio else "A"
    colour = theme.SIDES[side]
    kinds = {header.provenance for header in result.headers.values()}
    kind = "counted" if result.exact and kinds == {"measured"} else next(iter(kinds), "measured")
    # Counts are bars, and bars stand side by side whatever their distance.
    numeric = numeric and kind != "counted"
    x: list[Any] = values if numeric else [theme.plot_text(str(value)) for value in values]
    spreads = [result.points[value] for value in values]
    figure = go.Figure()
    if any(spread.min != spread.max for spread in spreads):
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[*(spread.max for spread in spreads), *(spread.min for spread in spreads[::-1])],
            fill="toself", fillcolor=theme.translucent(colour, 0.18), line={"width": 0},
            mode="lines", name="smallest to largest round", hoverinfo="skip",
        )  # fmt: skip
    medians = [spread.median for spread in spreads]
    if kind == "counted":
        look = theme.Look(kind, colour, theme.SIDE_PATTERNS[side])
        figure.add_bar(x=x, y=medians, name=kind, marker=look.marker())
    else:
        figure.add_scatter(
            x=x, y=medians, mode="lines+markers", name=theme.plot_text(kind),
            line={"color": colour, "dash": theme.dash(kind), "width": 2},
            marker={"symbol": theme.SIDE_SYMBOLS[side], "size": 8},
        )  # fmt: skip
    if result.modelled:
        modelled = sorted(result.modelled, key=_order)
        figure.add_scatter(
            x=modelled if numeric else [theme.plot_text(str(value)) for value in modelled],
            y=[result.modelled[value] for value in modelled],
            mode="lines", name="modelled",
            line={"color": colour, "dash": theme.dash("modelled"), "width": 2},
        )  # fmt: skip
    if result.is_ratio:
        figure.add_hline(y=1.0, line={"color": theme.INK, "width": 1})
    label = result.metric.label
    if result.is_ratio:
        label = f"“{result.sides[1]}” over “{result.sides[0]}”"
    unit = f" ({result.unit})" if result.unit else ""
    figure.update_layout(theme.layout(f"{result.metric.label} over {result.knob}"))
    figure.update_xaxes(title_text=theme.plot_text(f"{result.knob}{unit}"))
    figure.update_yaxes(
        title_text=theme.plot_text(label), type="log" if result.is_ratio else "linear"
    )
    wide = numeric and min(values) > 0 and max(values) / min(values) >= 16
    if wide:
        figure.update_xaxes(type="log", tickvals=x, ticktext=[f"{value:g}" for value in values])
    return LabFigure(
        figure=figure,
        caption=Provenance.of(result.headers).caption if result.headers else "",
        takeaway=_takeaway(result, values),
        alt=_alt(result, values),
        table=[
            {
                result.knob: value,
                "median": result.points[value].median,
                "smallest": result.points[value].min,
                "largest": result.points[value].max,
                "rounds": len(result.points[value].values),
            }
            | ({"modelled": result.modelled[value]} if value in result.modelled else {})
            for value in values
        ],
    )


def _takeaway(result: SweepResult, values: list[Any]) -> str:
    def said(value: Any) -> str:
        number = result.points[value].median
        return theme.format_ratio(number) if result.is_ratio else result.metric.show(number)

    text = (
        f"From {result.knob} = {values[0]} to {values[-1]}: {said(values[0])} to {said(values[-1])}"
    )
    if not result.is_ratio:
        return f"{text} ({result.metric.label})."
    text = f"{text} as much {result.metric.label} with “{result.sides[1]}”"
    place = result.crossover
    if place is None:
        return f"{text}; no crossover between these values."
    return f"{text}; both sides are equal near {place:.3g}."


def _alt(result: SweepResult, values: list[Any]) -> str:
    parts = [
        f"{value}: {result.points[value].median:.4g} "
        f"({result.points[value].min:.4g} to {result.points[value].max:.4g})"
        for value in values
    ]
    what = f"Ratio of {result.metric.label}" if result.is_ratio else result.metric.label
    return f"{what} over {result.knob}. " + "; ".join(parts) + "."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, Any]:
    return (False, value) if _is_number(value) else (True, str(value))
