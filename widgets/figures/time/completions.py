"""Completion against length: how long each request took, over how many tokens it asked for.

Both axes are logarithmic, so a straight line through the cloud is a price per token, and a request
far above the line waited for others.
"""

from __future__ import annotations

from statistics import fmean

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.log_axis import log_axis
from widgets.figures.sampling import sampled
from widgets.figures.sides import Runs, Side


def completions(
    runs: Runs,
    *,
    title: str = "End-to-end time over output tokens",
    workload: str = "",
) -> LabFigure:
    """Each finished request as a mark: output tokens across, end-to-end seconds up.

    Where there are more than a figure can carry, a sample is drawn, evenly spread in order of
    length, with the shortest and the longest by both axes; sentences and means are about all.
    """
    shown = given.sides(runs)
    figure = go.Figure()
    table: list[Row] = []
    counts = []
    ended = given.complete(shown)
    every: list[tuple[int, float]] = []
    for side in shown:
        points = _points(side)
        drawn = sampled(points, theme.MAX_MARKS, lambda p: p[0], lambda p: p[1])
        counts.append((len(drawn), len(points)))
        every += drawn
        figure.add_trace(
            go.Scatter(
                x=[tokens for tokens, _ in drawn],
                y=[seconds for _, seconds in drawn],
                mode="markers",
                showlegend=True,
                name=f"{side.label or 'the run'}: mean {theme.format_seconds(_mean(points))}"
                if points and ended
                else side.label or "the run",
                marker={
                    "symbol": side.symbol,
                    "size": 6,
                    "color": side.colour,
                    "opacity": 0.75,
                },
                hovertemplate="%{x} tokens, %{y:.3g} s<extra>" + side.label + "</extra>",
            )
        )
        name: Row = {"side": side.name} if side.name else {}
        table += [name | {"output tokens": n, "seconds": round(s, 6)} for n, s in drawn]
    figure.update_xaxes(
        {"type": "log"} | log_axis(n for n, _ in every), title={"text": "output tokens (counted)"}
    )
    figure.update_yaxes(
        {"type": "log"} | log_axis(s for _, s in every),
        title=given.axis_title("end to end", "s", shown),
    )
    figure.update_layout(theme.layout(title, height=420))
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, given.left_out(shown, counts, "requests")),
        takeaway=given.told(shown, " ".join(_sentence(side) for side in shown)),
        alt="Scatter of requests, seconds end to end over output tokens, both logarithmic. "
        + " ".join(_sentence(side) for side in shown),
        table=table,
    )


def _points(side: Side) -> list[tuple[int, float]]:
    """(output tokens, seconds) of requests that ended by themselves, by length."""
    return sorted(
        (request.metrics.num_output_tokens, request.metrics.e2e_s)
        for request in side.run.requests
        if request.finish_reason in ("stop", "length") and request.metrics.e2e_s is not None
    )


def _mean(points: list[tuple[int, float]]) -> float:
    return fmean(seconds for _, seconds in points)


def _sentence(side: Side) -> str:
    points = _points(side)
    name = side.called("the run")
    if not points:
        return f"{name[:1].upper()}{name[1:]}: no request has ended."
    shortest = points[: max(1, len(points) // 2)]
    return (
        f"{name[:1].upper()}{name[1:]}: {theme.format_count(len(points), 'request')} took "
        f"{theme.format_seconds(_mean(points))} on average, the shorter half "
        f"{theme.format_seconds(_mean(shortest))}, the worst "
        f"{theme.format_seconds(max(seconds for _, seconds in points))}."
    )
