"""Throughput: output tokens per second over time."""

from __future__ import annotations

from statistics import median

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sides import Runs, Side

_WINDOWS, _STEPS = 30, 4


def throughput(
    runs: Runs,
    *,
    window_s: float | None = None,
    title: str = "Output tokens per second",
    workload: str = "",
) -> LabFigure:
    """Output tokens/s in windows of `window_s` seconds.

    None: a thirtieth of the longest run, and at least four steps, or the figure would show how
    steps fall into windows.
    """
    shown = given.sides(runs)
    longest, ended = given.seconds(shown), given.complete(shown)
    if window_s is not None and window_s <= 0:
        raise ValueError(f"throughput(window_s={window_s}): expected seconds above 0")
    # Never more windows than a figure can carry.
    window = window_s or max(longest / _WINDOWS, _STEPS * max(map(_usual_step, shown)))
    window = max(window, longest / (theme.MAX_MARKS - 2)) or 1.0
    factor, unit = theme.time_unit(longest)
    figure = go.Figure()
    table: list[Row] = []
    for side in shown:
        rates = windows(side, window)
        # The last window is as long as what is left of the run.
        x = [factor * n * window for n in range(len(rates))] + [factor * _seconds(side)]
        figure.add_trace(
            go.Scatter(
                x=x, y=rates + rates[-1:], showlegend=True,
                mode="lines+markers" if len(rates) <= 2 * _WINDOWS else "lines",
                marker={"symbol": side.symbol, "size": 5},
                name=(side.label or "the run")
                + (f": mean {theme.format_rate(_mean(side))}" if ended else ""),
                line={"color": side.colour, "width": 2, "dash": side.dash, "shape": "hv"},
                hovertemplate="%{y:,.0f} tokens/s<extra>" + side.label + "</extra>",
            )
        )  # fmt: skip
        name: Row = {"side": side.name} if side.name else {}
        table += [
            name | {"from ms": round(n * window * 1e3, 3), "tokens/s": round(rate, 2)}
            for n, rate in enumerate(rates)
        ]
    figure.update_xaxes(
        title=given.axis_title("time", unit, shown), range=[0, 1.02 * factor * longest or 1.0]
    )
    figure.update_yaxes(
        title=given.axis_title("output", "tokens/s", shown),
        rangemode="tozero",
        showline=False,
        tickformat=",",
    )
    figure.update_layout(theme.layout(title, height=320, legend_rows=given.legend_rows(shown)))
    note = f"Windows of {theme.format_seconds(window)}."
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, note),
        takeaway=given.told(shown, _takeaway(shown)),
        alt="Output tokens per second over time. " + " ".join(_alt(side) for side in shown),
        table=table,
    )


def windows(side: Side, window_s: float) -> list[float]:
    """Tokens/s of each window of the run; a step's tokens count when it ends."""
    end = _seconds(side)
    if end <= 0:
        return []
    count = max(1, -int(-end // window_s))
    tokens = [0] * count
    for step in side.run.steps:
        at = int((step.end_s - side.origin_s) / window_s)
        tokens[min(at, count - 1)] += step.num_sampled_tokens
    spans = [min(window_s, end - n * window_s) for n in range(count)]
    # A sliver at the end would show a rate that no reader saw: it joins the window before.
    if count > 1 and spans[-1] < 0.5 * window_s:
        tokens[-2:] = [tokens[-2] + tokens[-1]]
        spans[-2:] = [spans[-2] + spans[-1]]
    return [number / span for number, span in zip(tokens, spans, strict=True)]


def _seconds(side: Side) -> float:
    return max((step.end_s - side.origin_s for step in side.run.steps[-1:]), default=0.0)


def _usual_step(side: Side) -> float:
    return median([step.duration_s for step in side.run.steps] or [0.0])


def _mean(side: Side) -> float:
    totals = side.run.totals
    return totals.sampled_tokens / totals.duration_s if totals.duration_s > 0 else 0.0


def _takeaway(shown: list[Side]) -> str:
    return " ".join(map(_compared, given.together(shown)))


def _compared(shown: list[Side]) -> str:
    words = [
        f"{side.called('the run')} made {theme.format_rate(_mean(side))} on average"
        for side in shown
    ]
    text = "; ".join(words)
    if len(shown) == 2 and all(_mean(side) > 0 for side in shown):
        fast, slow = sorted(shown, key=_mean, reverse=True)
        ratio = _mean(fast) / _mean(slow)
        if ratio >= 1.05:
            text += f": {theme.format_ratio(ratio)} more with {fast.name}"
    return f"{text[:1].upper()}{text[1:]}."


def _alt(side: Side) -> str:
    tokens = theme.format_count(side.run.totals.sampled_tokens, "token")
    return (
        f"{side.called('The run')}: {tokens} in "
        f"{theme.format_seconds(side.run.totals.duration_s)}, {theme.format_rate(_mean(side))}."
    )
