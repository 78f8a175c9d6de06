"""Latency distributions: what share of requests saw at most so long a wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import Distribution, TraceSnapshot
from minserve.trace.summary import distribution, inter_token_latencies
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.log_axis import log_axis
from widgets.figures.sampling import note, quantiles
from widgets.figures.sides import Runs, Side

Metric = Literal["ttft", "tpot", "itl", "e2e", "queue"]

METRICS: Mapping[str, tuple[str, str]] = {
    "ttft": ("Time to first token (TTFT)", "requests"),
    "tpot": ("Time per output token (TPOT)", "requests"),
    "itl": ("Inter-token latency (ITL)", "gaps"),
    "e2e": ("End-to-end latency", "requests"),
    "queue": ("Time in the queue", "requests"),
}
_LOG_SPAN = 20.0
_LABEL_PX, _CURVES_PX = 17, 216


def values(run: TraceSnapshot, metric: str) -> list[float]:
    """Seconds of a metric: one per finished request, or for ITL one per gap between tokens."""
    _check(metric)
    if metric == "itl":
        return inter_token_latencies(run.steps)
    found = (getattr(request.metrics, f"{metric}_s") for request in run.requests)
    return [value for value in found if value is not None]


def _check(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"latency metric {metric!r}: expected one of {', '.join(METRICS)}")


def latency(
    runs: Runs,
    metrics: Sequence[Metric] = ("ttft", "tpot"),
    *,
    title: str = "How long requests wait",
    workload: str = "",
) -> LabFigure:
    """Cumulative distributions of latencies, a panel per metric, medians marked.

    Further left is faster; a flat top is a slow tail. ITL needs `trace.per_request`.
    """
    shown = given.sides(runs)
    for metric in metrics:
        _check(metric)
    figure = make_subplots(
        rows=1, cols=len(metrics), shared_yaxes=True, horizontal_spacing=0.06,
        subplot_titles=[METRICS[metric][0] for metric in metrics],
    )  # fmt: skip
    theme.style_panels(figure)
    table: list[Row] = []
    found: dict[tuple[str, str], Distribution | None] = {}
    notes = []
    for column, metric in enumerate(metrics, start=1):
        data = {side.name: sorted(values(side.run, metric)) for side in shown}
        factor, unit = theme.time_unit(max((max(v) for v in data.values() if v), default=0.0))
        for side in shown:
            found[side.name, metric] = stats = distribution(data[side.name])
            notes.append(_draw(figure, column, side, data[side.name], factor, len(shown), metric))
            name: Row = {"side": side.name} if side.name else {}
            table.append(name | {"metric": metric.upper(), **_cells(stats)})
        lowest = min((v[0] for v in data.values() if v), default=0.0)
        highest = max((v[-1] for v in data.values() if v), default=0.0)
        log = lowest > 0 and highest > _LOG_SPAN * lowest
        medians = [(side, found[side.name, metric]) for side in shown]
        if given.complete(shown):
            _name_medians(figure, column, medians)
        axis = {"type": "linear", "rangemode": "tozero"}
        if log:
            axis = log_axis((lowest * factor, highest * factor))
        figure.update_xaxes(
            axis, title=given.axis_title("latency", unit + (", log scale" if log else ""), shown),
            row=1, col=column,
        )  # fmt: skip
    labels = _LABEL_PX * len(shown) + 4
    figure.update_yaxes(
        range=[0, 1 + 1.08 * labels / _CURVES_PX], tickformat=".0%", showline=False,
        tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1],
    )  # fmt: skip
    of = " or ".join(dict.fromkeys(METRICS[metric][1] for metric in metrics))
    figure.update_yaxes(title={"text": f"share of {of} (%)"}, row=1, col=1)
    rows = given.legend_rows(shown)
    figure.update_layout(theme.layout(title, height=350 + labels, panels=True, legend_rows=rows))
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, *notes),
        takeaway=given.told(shown, _takeaway(shown, metrics, found)),
        alt=_alt(shown, metrics, found),
        table=table,
    )


def _draw(
    figure: go.Figure,
    column: int,
    side: Side,
    ordered: Sequence[float],
    factor: float,
    num_sides: int,
    metric: str,
) -> str:
    """Draw a curve with its median; the note on what it leaves out."""
    # With the foot of the curve, no more marks than a figure can carry.
    points = quantiles(ordered, theme.MAX_MARKS - 1)
    if not points:
        return ""
    x = [points[0][0] * factor, *(value * factor for value, _ in points)]
    y = [0.0, *(share for _, share in points)]
    # A side's symbol in ten places, or a curve of many values would be told by its colour alone.
    every = max(1, len(points) // 10)
    sizes = [0] + [5 if len(points) <= 40 or n % every == 0 else 0 for n in range(len(points))]
    figure.add_trace(
        go.Scatter(
            x=x, y=y, mode="lines+markers", name=side.label or "the run",
            line={"color": side.colour, "width": 2, "dash": side.dash, "shape": "hv"},
            marker={"symbol": side.symbol, "size": sizes, "color": side.colour},
            legendgroup=side.key, showlegend=column == 1 and num_sides > 1,
            hovertemplate="%{y:.0%} within %{x:.4g}<extra>" + side.label + "</extra>",
        ),
        row=1, col=column,
    )  # fmt: skip
    middle = distribution(ordered)
    assert middle is not None
    figure.add_trace(
        go.Scatter(
            x=[middle.p50 * factor], y=[0.5], mode="markers", showlegend=False,
            marker={"symbol": side.symbol, "size": 11, "color": side.colour,
                    "line": {"width": 1.5, "color": "white"}},
            legendgroup=side.key, hoverinfo="skip",
        ),
        row=1, col=column,
    )  # fmt: skip
    return note(len(points), len(ordered), f"{metric.upper()} values", side.name)


def _name_medians(
    figure: go.Figure, column: int, medians: Sequence[tuple[Side, Distribution | None]]
) -> None:
    """The medians in words, above the curves' 100 %: a line each, where nothing is drawn."""
    for place, (side, stats) in enumerate(medians):
        if stats is None:
            continue
        figure.add_annotation(
            text=(f"{side.label}: " if side.label else "")
            + f"median {theme.format_seconds(stats.p50)}{', recorded' * side.is_twin}",
            showarrow=False, x=0.02, xanchor="left", xref="x domain",
            y=1.0, yanchor="top", yref="y domain", yshift=-_LABEL_PX * place,
            font={"size": 12, "color": side.colour}, row=1, col=column,
        )  # fmt: skip


def _cells(stats: Distribution | None) -> Row:
    if stats is None:
        return {"count": 0}
    names = ("p50", "p90", "p99", "min", "max", "mean")
    return {"count": stats.count} | {
        f"{name} ms": round(getattr(stats, name) * 1e3, 4) for name in names
    }


def _takeaway(
    shown: list[Side], metrics: Sequence[str], found: Mapping[tuple[str, str], Distribution | None]
) -> str:
    return " ".join(_compared(group, metrics, found) for group in given.together(shown))


def _compared(
    shown: list[Side], metrics: Sequence[str], found: Mapping[tuple[str, str], Distribution | None]
) -> str:
    told = []
    for metric in metrics:
        some = [(side, found[side.name, metric]) for side in shown]
        words = [
            f"{theme.format_seconds(stats.p50)}{f' ({side.name})' if side.name else ''}"
            for side, stats in some
            if stats is not None
        ]
        if not words:
            told.append(f"no {metric.upper()} was measured")
            continue
        text = f"median {metric.upper()} {' against '.join(words)}"
        if len(some) == 2 and all(stats is not None and stats.p50 > 0 for _, stats in some):
            (_, first), (second, other) = some
            assert first is not None and other is not None
            slow, fast = max(first.p50, other.p50), min(first.p50, other.p50)
            if slow / fast >= 1.05:
                direction = "less" if other.p50 < first.p50 else "more"
                text += f", {theme.format_ratio(slow / fast)} {direction} with {second.name}"
        told.append(text)
    sentence = "; ".join(told)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _alt(
    shown: list[Side], metrics: Sequence[str], found: Mapping[tuple[str, str], Distribution | None]
) -> str:
    told = []
    for metric in metrics:
        for side in shown:
            stats = found[side.name, metric]
            if stats is not None:
                told.append(
                    f"{side.called('run')}, {metric.upper()}: {stats.count:,} values, median "
                    f"{theme.format_seconds(stats.p50)}, 90 % within "
                    f"{theme.format_seconds(stats.p90)}, longest {theme.format_seconds(stats.max)}."
                )
    return "Cumulative distributions of latency. " + (" ".join(told) or "Nothing was measured.")
