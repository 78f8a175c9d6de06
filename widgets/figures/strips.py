"""The figure every comparison opens with: the quantity it is about, memory, and what it costs.

Both sides lie over each other on one time axis that begins with each run, so that equal seconds
are equally wide. Above are the metric's own samples and its value; below KV memory; at the bottom,
where a side pays something, the price as counted bars.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import StepTrace
from minserve.trace.totals import RunTotals
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import thinned
from widgets.figures.sides import Runs, Side
from widgets.metrics import Metric, Sample, allocated_bytes, keeps

_LABELS_PX, _LETTER_PX = 190, 6
"""Room for the values, right of the strips: at least, and for a letter of the memory's labels."""
_UNTITLED_PX = 62
"""Room for the legend and the first strip's name, where there is no title."""
_TOP_PX, _MEMORY_PX, _PRICE_PX, _GAP_PX = 190, 130, 36, 66


@dataclass(frozen=True)
class _Price:
    """Something a side may pay with, over its whole run."""

    label: str
    read: Callable[[RunTotals], float]
    show: Callable[[float], str] = lambda value: theme.format_count(round(value))


PRICES = (
    _Price("tokens computed again", lambda t: t.recomputed_tokens),
    _Price("requests preempted", lambda t: t.preemptions),
    _Price("padded rows", lambda t: t.padded_rows),
    _Price("rows computed in vain", lambda t: t.discarded_tokens),
    _Price("pages copied", lambda t: t.copied_blocks),
    _Price("pages moved to or from the host", lambda t: t.swapped_out_blocks + t.swapped_in_blocks),
    _Price("host memory, peak", lambda t: t.peak_host_bytes, theme.format_bytes),
    _Price("graphs compiled", lambda t: t.compiled_graphs),
)


def strips(
    runs: Runs, metric: Metric, *, complete: bool = True, title: str = "", workload: str = ""
) -> LabFigure:
    """The metric over time, KV memory over time, and the price, of one or more sides.

    While runs are not `complete`, their samples are drawn and no value is quoted. Knows no verdict,
    so it has no takeaway. Raises ValueError for a metric without samples.
    """
    if metric.samples is None:
        raise ValueError(
            f"the metric {metric.name!r} has no samples to draw over time: give it `samples`"
        )
    shown = given.sides(runs)
    own = [side for side in shown if not side.is_twin]
    end_s = max((_end_s(side) for side in shown), default=0.0)
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
    notes = _draw_metric(figure, shown, metric, factor, complete)
    letters = _draw_memory(figure, own, factor)
    if paid:
        _draw_prices(figure, own, paid)
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
        alt=_alt(own, metric, paid),
        table=[_row(side, metric, paid) for side in shown],
    )


def _end_s(side: Side) -> float:
    return max((step.end_s - side.origin_s for step in side.run.steps[-1:]), default=0.0)


def _draw_metric(
    figure: go.Figure, shown: Sequence[Side], metric: Metric, factor: float, complete: bool
) -> str:
    """Samples and value of every side; returns what the caption says about samples left out."""
    assert metric.samples is not None
    samples = {side.name: metric.samples(side.run) for side in shown}
    values = {side.name: _value(side, metric) if complete else None for side in shown}
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
            x, y = [*x, factor * _end_s(side)], [*y, y[-1]]
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
    return _line(side, [0, factor * _end_s(side)], [y, y])


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
    for (side, _, text), height in zip(places, _apart(heights, 0.22), strict=True):
        kind = " (recorded)" if side.is_twin else ""
        name = f"{side.label}<br>" if side.name else ""
        figure.add_annotation(
            text=f"{name}<b>{theme.plot_text(text)}</b>{kind}", showarrow=False, align="left",
            x=1.0, xref="paper", xanchor="left", xshift=8,
            y=height, yref="y domain", yanchor="middle",
            font={"size": 12, "color": side.colour},
        )  # fmt: skip


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights between 0 and 1, moved as little as it takes to be `least` apart, in their order."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    found = [min(max(height, 0.06), 1.0) for height in heights]
    for below, above in itertools.pairwise(order):
        found[above] = max(found[above], found[below] + least)
    if order and found[order[-1]] > 1.0:
        found[order[-1]] = 1.0
    for below, above in itertools.pairwise(order[::-1]):
        found[above] = min(found[above], found[below] - least)
    return found


def _draw_memory(figure: go.Figure, own: Sequence[Side], factor: float) -> int:
    """Memory of every side; returns how many letters its longest label has."""
    highest = max(
        (
            max(allocated_bytes(s.run, step), *_beside(step).values())
            for s in own
            for step in s.run.steps
        ),
        default=0,
    )
    divisor, unit = theme.byte_unit(highest)
    labels: list[tuple[Side, float, str]] = []
    for side in own:
        steps = thinned(side.run.steps, theme.MAX_MARKS // 2, key=lambda s: s.kv_bytes_allocated)
        if not steps:
            continue
        x = [factor * (step.start_s - side.origin_s) for step in steps]
        x.append(factor * _end_s(side))
        owned = [allocated_bytes(side.run, step) / divisor for step in steps]
        used = [step.kv_bytes_used / divisor for step in steps]
        filled = [min(pair) for pair in zip(used, owned, strict=True)]
        shape = side.pattern
        for name, y, width, opacity in (("used", filled, 0.0, 0.3), ("allocated", owned, 2.0, 0.0)):
            figure.add_trace(
                go.Scatter(
                    x=x, y=y + y[-1:], name=f"{side.label} {name}", showlegend=False,
                    mode="lines" if opacity else "lines+markers", legendgroup=side.key,
                    marker={"symbol": side.symbol, "size": 6, "maxdisplayed": 8},
                    line={"color": side.colour, "width": width, "shape": "hv"},
                    fill="tozeroy" if opacity else None,
                    fillcolor=theme.translucent(side.colour, opacity) if opacity else None,
                    fillpattern={"shape": shape, "size": 8, "solidity": 0.2, "fillmode": "overlay",
                                 "fgcolor": side.colour} if opacity and shape else None,
                    hovertemplate=f"{name} %{{y:.3g}} {unit}<extra>{side.label}</extra>",
                ),
                row=2, col=1,
            )  # fmt: skip
        labels.append((side, max(owned), _peak(side)))
        for name in _beside(steps[0]):
            y = [_beside(step)[name] / divisor for step in steps]
            if max(y) <= 0:
                continue
            figure.add_trace(
                go.Scatter(
                    x=x, y=y + y[-1:], mode="lines+markers", showlegend=False,
                    legendgroup=side.key, name=f"{side.label} {name}",
                    line={"color": side.colour, "width": 1, "shape": "hv"},
                    marker={"symbol": side.symbol, "size": 4, "maxdisplayed": 12},
                    hovertemplate=f"{name} %{{y:.3g}} {unit}<extra>{side.label}</extra>",
                ),
                row=2, col=1,
            )  # fmt: skip
            labels.append((side, max(y), f"{theme.format_bytes(max(y) * divisor)} {name}"))
    figure.update_yaxes(
        range=[0, 1.1 * highest / divisor or 1.0], title={"text": unit}, showline=False,
        row=2, col=1,
    )  # fmt: skip
    _label_memory(figure, labels, 1.1 * highest / divisor or 1.0)
    return max((len(f"{side.label}: {text}") for side, _, text in labels), default=0)


def _peak(side: Side) -> str:
    """Most KV memory allocated; a run without a cache keeps no page beyond its step."""
    if not keeps(side.run):
        return "0 bytes kept"
    return f"{theme.format_bytes(side.run.totals.peak_kv_bytes_allocated)} allocated"


def _beside(step: StepTrace) -> dict[str, float]:
    """Bytes that no running request owns, by where they lie."""
    page = step.kv_bytes_reserved / step.blocks_total if step.blocks_total else 0.0
    return {
        "kept for hits": step.blocks.cached_blocks * page,
        "in host memory": float(step.blocks.host_bytes),
    }


def _label_memory(figure: go.Figure, labels: Sequence[tuple[Side, float, str]], top: float) -> None:
    heights = _apart([value / top for _, value, _ in labels], 0.15)
    for (side, _, text), height in zip(labels, heights, strict=True):
        figure.add_annotation(
            text=f"{side.label}: {theme.plot_text(text)}" if side.name else theme.plot_text(text),
            showarrow=False, align="left", x=1.0, xref="paper", xanchor="left", xshift=8,
            y=height, yref="y2 domain", yanchor="middle",
            font={"size": 11, "color": side.colour},
        )  # fmt: skip


def _draw_prices(figure: go.Figure, own: Sequence[Side], paid: Sequence[_Price]) -> None:
    """Bars as long as their share of the larger side's: every price has a unit of its own."""
    labels = [each.label for each in paid]
    most = [max(each.read(side.run.totals) for side in own) for each in paid]
    for side in own:
        values = [each.read(side.run.totals) for each in paid]
        figure.add_trace(
            go.Bar(
                y=labels, x=[value / top for value, top in zip(values, most, strict=True)],
                orientation="h", name=side.label or "the run", legendgroup=side.key,
                showlegend=False,
                marker=theme.Look(side.name, side.colour, side.pattern).marker(),
                # Beside the bars: names in the margin would make all strips narrower.
                text=[f"{each.label}: {each.show(value)} {f'({side.label})' * bool(side.name)}"
                      for each, value in zip(paid, values, strict=True)],
                textposition="outside", cliponaxis=False, textfont={"size": 12},
                hovertemplate="%{text}<extra></extra>",
            ),
            row=3, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[0, 1.5], visible=False, row=3, col=1)
    figure.update_yaxes(autorange="reversed", visible=False, row=3, col=1)


def _alt(own: Sequence[Side], metric: Metric, paid: Sequence[_Price]) -> str:
    told = []
    for side in own:
        value, totals = _value(side, metric), side.run.totals
        said = "nothing yet" if value is None else metric.show(value)
        words = [f"{side.called('The run')}: {metric.label} {said}"]
        words.append(f"KV memory at its peak: {_peak(side)}")
        words += [f"{each.label} {each.show(each.read(totals))}" for each in paid]
        told.append(", ".join(words) + ".")
    return f"Strips over time: {metric.label}, and KV memory. " + " ".join(told)


def _row(side: Side, metric: Metric, paid: Sequence[_Price]) -> Row:
    name: Row = {"side": side.name} if side.name else {}
    value, totals = _value(side, metric), side.run.totals
    return (
        name
        | {metric.label: "" if value is None else metric.show(value)}
        | {"KV memory, peak": _peak(side)}
        | {each.label: each.show(each.read(totals)) for each in paid}
    )
