"""The figure every comparison opens with: the quantity it is about, memory, and what it costs.

Both sides lie over each other on one time axis that begins with each run, so that equal seconds
are equally wide. Above are the metric's own samples and its value; below KV memory; at the bottom,
where a side pays something, the price as counted bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import thinned
from widgets.figures.sides import Runs, Side
from widgets.figures.strip_rows import (
    PRICES,
    Price,
    apart,
    draw_memory,
    draw_prices,
    end_of,
    peak,
)
from widgets.metrics import Metric, Sample

_LABELS_PX, _LETTER_PX = 190, 6
"""Room for the values, right of the strips: at least, and for a letter of the memory's labels."""
_UNTITLED_PX = 62
"""Room for the legend and the first strip's name, where there is no title."""
_TOP_PX, _MEMORY_PX, _PRICE_PX, _GAP_PX = 190, 130, 36, 66


def strips(
    runs: Runs, metric: Metric, *, complete: bool = True, title: str = "", workload: str = ""
) -> LabFigure:
    """The metric over time, KV memory over time, and the price, of one or more sides.

    While runs are not `complete`, their samples are drawn and no value is quoted, nor told in the
    alternative text and the table. Knows no verdict,
    so it has no takeaway. Raises ValueError for a metric without samples.
    """
    if metric.samples is None:
        raise ValueError(
            f"the metric {metric.name!r} has no samples to draw over time: give it `samples`"
        )
    shown = given.sides(runs)
    own = [side for side in shown if not side.is_twin]
    end_s = max((end_of(side) for side in shown), default=0.0)
    factor, seconds = theme.time_unit(end_s)
    paid = [each for each in PRICES if any(each.read(side.run.totals) > 0 for side in own)]
    heights = [_TOP_PX, _MEMORY_PX]
    titles = [metric.axis or metric.label, "KV memory: outline allocated, filled used (counted)"]
    if paid:
        heights.append(_PRICE_PX * len(paid) * max(1, len(own)) // 2 + 10)
        titles.append("The price (counted)")
    plot_px = sum(heights) + _GAP_PX * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights), cols=1, row_heights=heights, vertical_spacing=_GAP_PX / plot_px,
        subplot_titles=titles,
    )  # fmt: skip
    theme.style_panels(figure)
    values = {side.name: _value(side, metric) if complete else None for side in shown}
    notes = _draw_metric(figure, shown, metric, factor, values)
    letters = draw_memory(figure, own, factor)
    if paid:
        draw_prices(figure, own, paid)
    times = {"range": [0, end_s * factor * 1.01 or 1.0], "automargin": True}
    figure.update_xaxes(**times, showticklabels=False, row=1, col=1)
    figure.update_xaxes(**times, title=given.axis_title("time", seconds, shown), row=2, col=1)
    figure.update_layout(
        theme.layout(
            title, height=plot_px + (140 if title else 114), panels=True,
            legend_rows=given.legend_rows(shown),
            margin={"r": max(_LABELS_PX, 16 + _LETTER_PX * letters)}
            | ({} if title else {"t": _UNTITLED_PX}),
        )
    )  # fmt: skip
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, notes),
        takeaway="",
        alt=_alt(own, values, metric, paid),
        table=[_row(side, values[side.name], metric, paid) for side in shown],
    )


def _draw_metric(
    figure: go.Figure,
    shown: Sequence[Side],
    metric: Metric,
    factor: float,
    values: Mapping[str, float | None],
) -> str:
    """Samples and value of every side; returns what the caption says about samples left out."""
    assert metric.samples is not None
    samples = {side.name: metric.samples(side.run) for side in shown}
    levels = metric.style in ("dots", "line")
    highest = max(
        [value for many in samples.values() for _, value in many]
        + [value for value in values.values() if value is not None and metric.style != "finish"],
        default=0.0,
    )
    scale, unit = _scale(metric, highest)
    notes = []
    for side in shown:
        many = samples[side.name]
        few = thinned(many, theme.MAX_MARKS, key=lambda sample: sample[1])
        if len(few) < len(many):
            of = f"{side.name}: " if side.name else ""
            notes.append(
                f"{of}{len(few):,} of {len(many):,} samples drawn, the largest among them."
            )
        _draw_samples(figure, side, few, metric, factor, scale)
        value = values[side.name]
        if value is None:
            continue
        if levels:
            figure.add_trace(_level(side, factor, value * scale), row=1, col=1)
        elif metric.style == "finish":
            x = factor * value
            figure.add_trace(_line(side, [x, x], [0, 1]), row=1, col=1)
    top = 1.0 if metric.style == "finish" else highest * scale
    figure.update_yaxes(
        range=[0, 1.08 * top or 1.0], showline=False, title={"text": unit}, row=1, col=1,
        tickformat=".0%" if metric.style == "finish" else None,
    )  # fmt: skip
    places = [
        (side, value if levels else _last(samples[side.name], value), metric.show(value))
        for side, value in ((side, values[side.name]) for side in shown)
        if value is not None
    ]
    if metric.style == "finish":
        places = [(side, 1.0 - 0.22 * n, text) for n, (side, _, text) in enumerate(places)]
    _label_values(figure, places, scale if metric.style != "finish" else 1.0, top)
    return " ".join(notes)


def _value(side: Side, metric: Metric) -> float | None:
    return metric.read(side.run) if side.run.steps else None


def _last(samples: Sequence[Sample], value: float) -> float:
    return samples[-1][1] if samples else value


def _scale(metric: Metric, highest: float) -> tuple[float, str]:
    """Factor from the metric's values to its axis, and the axis' unit."""
    if metric.style == "finish":
        return 1.0, ""
    if metric.show is theme.format_seconds:
        return theme.time_unit(highest)
    if metric.show is theme.format_bytes:
        divisor, unit = theme.byte_unit(highest)
        return 1 / divisor, unit
    if metric.show is theme.format_percent:
        return 100.0, "%"
    # The unit is what `show` writes behind the number.
    return 1.0, metric.show(highest).partition(" ")[2]


def _draw_samples(
    figure: go.Figure,
    side: Side,
    samples: Sequence[Sample],
    metric: Metric,
    factor: float,
    scale: float,
) -> None:
    x = [factor * (at - side.origin_s) for at, _ in samples]
    y = [scale * value for _, value in samples]
    dots = metric.style == "dots"
    symbol = f"{side.symbol}-open" if side.is_twin else side.symbol
    look: dict[str, Any] = {
        "marker": {"symbol": symbol, "size": 7, "color": side.colour, "opacity": 0.75},
        "mode": "markers",
    }
    if not dots:
        if metric.style == "line" and x:
            x, y = [*x, factor * end_of(side)], [*y, y[-1]]
        shape = "hv" if metric.style in ("line", "total", "finish") else "linear"
        look = {
            "mode": "lines+markers",
            "line": {"color": side.colour, "width": 2, "dash": side.dash, "shape": shape},
            # A few, so that sides differ by more than their colour.
            "marker": {"symbol": symbol, "size": 7, "maxdisplayed": 10},
        }
    figure.add_trace(
        go.Scatter(
            x=x, y=y, name=side.label or "the run", legendgroup=side.key,
            showlegend=bool(side.name), **look,
            hovertemplate="%{y:.4g} at %{x:.4g}<extra>" + side.label + "</extra>",
        ),
        row=1, col=1,
    )  # fmt: skip


def _level(side: Side, factor: float, y: float) -> go.Scatter:
    return _line(side, [0, factor * end_of(side)], [y, y])


def _line(side: Side, x: list[float], y: list[float]) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": side.colour, "width": 2, "dash": side.dash},
        legendgroup=side.key, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def _label_values(
    figure: go.Figure, places: Sequence[tuple[Side, float, str]], scale: float, top: float
) -> None:
    """Each side's value right of the strip, at its height."""
    heights = [scale * value / (1.08 * top) if top else 0.0 for _, value, _ in places]
    for (side, _, text), height in zip(places, apart(heights, 0.22), strict=True):
        kind = " (recorded)" if side.is_twin else ""
        name = f"{side.label}<br>" if side.name else ""
        figure.add_annotation(
            text=f"{name}<b>{theme.plot_text(text)}</b>{kind}", showarrow=False, align="left",
            x=1.0, xref="paper", xanchor="left", xshift=8,
            y=height, yref="y domain", yanchor="middle",
            font={"size": 12, "color": side.colour},
        )  # fmt: skip


def _alt(
    own: Sequence[Side],
    values: Mapping[str, float | None],
    metric: Metric,
    paid: Sequence[Price],
) -> str:
    told = []
    for side in own:
        value, totals = values[side.name], side.run.totals
        said = "nothing yet" if value is None else metric.show(value)
        words = [f"{side.called('The run')}: {metric.label} {said}"]
        words.append(f"KV memory at its peak: {peak(side)}")
        words += [f"{each.label} {each.show(each.read(totals))}" for each in paid]
        told.append(", ".join(words) + ".")
    return f"Strips over time: {metric.label}, and KV memory. " + " ".join(told)


def _row(side: Side, value: float | None, metric: Metric, paid: Sequence[Price]) -> Row:
    name: Row = {"side": side.name} if side.name else {}
    totals = side.run.totals
    return (
        name
        | {metric.label: "" if value is None else metric.show(value)}
        | {"KV memory, peak": peak(side)}
        | {each.label: each.show(each.read(totals)) for each in paid}
    )
