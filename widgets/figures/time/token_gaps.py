"""Gaps between tokens in the timeline: each token a tick, and a wait for one drawn as waiting.

A decode step that takes far longer than usual gives its requests one token at its end, and nothing
before: filled like any other step, it would look like work for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import plotly.graph_objects as go

from minserve.trace import TraceSnapshot
from widgets import theme
from widgets.figures.sides import Side
from widgets.figures.time.lanes import Lane, Span, lanes

FROZEN = theme.Look("no token meanwhile", "rgba(128, 128, 128, 0.16)", "/")
TICK = "a token"
Line = tuple[Lane, list[Span]]
_LONG = 3.0
"""A gap is long if it is so many times the usual one."""
_NARROWEST = 0.008
"""Share of the axis between two ticks that can be told apart."""


@dataclass(frozen=True)
class Gap:
    """Time in which a lane got no token, between two tokens."""

    place: int
    """The lane's place among those drawn."""
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


def usual_gap_s(shown: Sequence[Side]) -> float:
    """Median seconds between two tokens of a request, over all sides; 0 where there are none."""
    found = [
        after - before
        for side in shown
        for lane in lanes(side.run)
        for before, after in itertools.pairwise(token_times(lane, side.run))
    ]
    return median(found) if found else 0.0


def frozen(found: Sequence[Span], usual_s: float) -> list[Span]:
    """The spans as they are drawn: a long decode step is "frozen"."""
    return [
        replace(span, state="frozen")
        if span.state == "decode" and span.end_s - span.start_s > _LONG * usual_s > 0
        else span
        for span in found
    ]


def token_times(lane: Lane, run: TraceSnapshot) -> list[float]:
    """When each token was there: the end of its step."""
    return [run.steps[index].end_s for index, part in lane.parts if part.new_token_ids]


def longest_gap(lines: Sequence[Line], run: TraceSnapshot, usual_s: float) -> Gap | None:
    """The longest gap of all lanes; None where no gap is long."""
    gaps = [
        Gap(place, before, after)
        for place, (lane, _) in enumerate(lines)
        for before, after in itertools.pairwise(token_times(lane, run))
    ]
    found = max(gaps, key=lambda gap: gap.seconds, default=None)
    return found if found is not None and found.seconds > _LONG * usual_s > 0 else None


def ticks_fit(shown: Sequence[Side], drawn: Sequence[Sequence[Line]], whole_s: float) -> bool:
    """True if on every side tokens are few enough, and far enough apart, to be told apart on an
    axis of `whole_s` seconds."""
    for side, lines in zip(shown, drawn, strict=True):
        times = [token_times(lane, side.run) for lane, _ in lines]
        gaps = [after - before for each in times for before, after in itertools.pairwise(each)]
        if sum(map(len, times)) > theme.MAX_MARKS:
            return False
        if gaps and median(gaps) < _NARROWEST * whole_s:
            return False
    return True


def draw_ticks(
    figure: go.Figure,
    row: int,
    side: Side,
    lines: Sequence[Line],
    factor: float,
    explained: set[str],
) -> None:
    """A tick for each token."""
    times = [token_times(lane, side.run) for lane, _ in lines]
    figure.add_trace(
        go.Scatter(
            x=[(at - side.origin_s) * factor for each in times for at in each],
            y=[place for place, each in enumerate(times) for _ in each],
            mode="markers", name=TICK, legendgroup=TICK, showlegend=TICK not in explained,
            marker={"symbol": "line-ns", "size": 15, "line": {"width": 1.8, "color": theme.INK}},
            hoverinfo="skip",
        ),
        row=row, col=1,
    )  # fmt: skip
    explained.add(TICK)


def draw_gap(
    figure: go.Figure, row: int, side: Side, gap: Gap, factor: float, reach: tuple[float, float]
) -> None:
    """The longest gap: outlined in its lane, and named above the lanes, where no mark is."""
    begin, end = ((at - side.origin_s) * factor for at in (gap.start_s, gap.end_s))
    middle = (begin + end) / 2
    share = (middle - reach[0]) / ((reach[1] - reach[0]) or 1.0)
    where = "top right" if share < 0.15 else "top left" if share > 0.85 else "top center"
    low, high = gap.place + 0.44, gap.place - 0.44
    foot, bar, text = -0.6, -0.75, -0.85
    figure.add_trace(
        go.Scatter(
            x=[begin, end, end, begin, begin, None, begin, begin, end, end],
            y=[low, low, high, high, low, None, foot, bar, bar, foot],
            mode="lines", line={"color": theme.INK, "width": 1.4}, cliponaxis=False,
            showlegend=False, hoverinfo="skip",
        ),
        row=row, col=1,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[middle], y=[text], mode="text", textposition=where, cliponaxis=False,
            text=[f"{theme.format_seconds(gap.seconds)} without a token"],
            textfont={"size": 12, "color": theme.INK}, showlegend=False, hoverinfo="skip",
        ),
        row=row, col=1,
    )  # fmt: skip
