"""The timeline: each request a lane, each step a column, what it did in it a mark.

Over time, tokens are ticks, and a step that keeps a request waiting for its next token is hatched.
"""

from __future__ import annotations

import itertools
from statistics import median
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sides import Runs, Side
from widgets.figures.time.lane_choice import chosen
from widgets.figures.time.lanes import Lane, Span, lanes, merged
from widgets.figures.time.token_gaps import (
    FROZEN,
    Line,
    draw_gap,
    draw_ticks,
    longest_gap,
    ticks_fit,
    token_times,
    usual_gap_s,
)

_LANE_PX, _FRAME_PX = 24, 122
_ENTRIES = 6
"""Entries in a row of the legend."""
_LOOKS = theme.STATES | {"frozen": FROZEN}
MAX_LANES = 40
"""Most lanes of one run: more do not read. Which ones is `lane_choice`'s."""


def timeline(
    runs: Runs,
    *,
    x: Literal["time", "step"] = "time",
    title: str = "What each request did in each step",
    workload: str = "",
    max_lanes: int = MAX_LANES,
    window_s: tuple[float, float] | None = None,
) -> LabFigure:
    """Lanes of requests over time or steps: waiting, prefill chunks, decode, preemption.

    Over time, each side's longest wait between two tokens is named where it is far from usual.

    `runs` is a trace, or several side by side by name. Needs `trace.per_request`; a state with
    more than `theme.MAX_MARKS` marks is drawn in runs of steps instead of single ones.
    `window_s` shows only what happened between two times, in seconds from the first arrival.
    """
    if x not in ("time", "step"):
        raise ValueError(f"timeline(x={x!r}): expected 'time' or 'step'")
    shown = given.sides(runs)
    given.need_detail(shown, "The timeline")
    if window_s is not None and not window_s[0] < window_s[1]:
        raise ValueError(f"timeline(window_s={window_s}): expected (begin, end) in seconds")
    usual = usual_gap_s(shown) if x == "time" else 0.0
    drawn, notes = chosen(shown, max_lanes, window_s, usual)
    unit = theme.time_unit(given.seconds(shown)) if x == "time" else (1.0, "step")
    gaps = [longest_gap(lines, side.run, usual) for side, lines in zip(shown, drawn, strict=True)]
    # The name of a gap stands in a row of its own above the lanes.
    heads = [0.5 if gap is None else 1.8 for gap in gaps]
    heights = [max(1, len(lines)) - 0.5 + head for lines, head in zip(drawn, heads, strict=True)]
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True, row_heights=heights,
        vertical_spacing=min(0.3, 34 / (_LANE_PX * sum(heights) + 34)),
        subplot_titles=[side.label for side in shown] if len(shown) > 1 else None,
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown])
    # All panels share the axis, so they share what a mark's width is measured against.
    reach = [_reach(side, d, x, unit[0]) for side, d in zip(shown, drawn, strict=True)]
    extent = min(begin for begin, _ in reach), max(end for _, end in reach)
    whole = (extent[1] - extent[0]) or 1.0
    ticks = x == "time" and ticks_fit(shown, drawn, whole / unit[0])
    table: list[Row] = []
    explained: set[str] = set()
    for row, (side, lines, gap) in enumerate(zip(shown, drawn, gaps, strict=True), start=1):
        _draw(figure, row, side, lines, x, unit[0], whole, explained)
        if ticks:
            draw_ticks(figure, row, side, lines, unit[0], explained)
        if gap is not None:
            draw_gap(figure, row, side, gap, unit[0], extent)
        table += [_row(side, lane, span) for lane, found in lines for span in found]
        figure.update_yaxes(
            row=row, col=1, range=[len(lines) - 0.5, -heads[row - 1]],
            showgrid=False, showline=False, tickvals=list(range(len(lines))),
            ticktext=[theme.plot_text(lane.name) for lane, _ in lines],
            title={"text": "request"} if row == 1 else None,
        )  # fmt: skip
    axis = {"text": "engine step (counted)"}
    if x == "time":
        axis = given.axis_title("time since the first arrival", unit[1], shown)
    figure.update_xaxes(title=axis, row=len(shown), col=1)
    figure.update_xaxes(range=[0, extent[0] + 1.02 * whole])
    if window_s is not None and x == "time":
        figure.update_xaxes(range=[seconds * unit[0] for seconds in window_s])
    height = int(_FRAME_PX + _LANE_PX * sum(heights) + 44 * (len(shown) - 1))
    figure.update_layout(
        theme.layout(
            title,
            height=max(height, 220),
            panels=len(shown) > 1,
            barmode="overlay",
            bargap=0.2,
            # A row of patterns is nearly twice as high as one of words.
            legend_rows=2 * -(-len(explained) // _ENTRIES) - 1,
        )
    )
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, *notes),
        takeaway=given.told(shown, " ".join(_takeaway(side) for side in shown)),
        alt=" ".join(_alt(side, lines) for side, lines in zip(shown, drawn, strict=True)),
        table=table,
    )


def _reach(side: Side, lines: list[Line], x: str, factor: float) -> tuple[float, float]:
    """Begin and end of what is drawn, in units of the axis."""
    every = [span for _, found in lines for span in found]
    if not every:
        return 0.0, 0.0
    if x == "step":
        return min(span.first for span in every), 1 + max(span.last for span in every)
    ends = min(span.start_s for span in every), max(span.end_s for span in every)
    return (ends[0] - side.origin_s) * factor, (ends[1] - side.origin_s) * factor


def _draw(
    figure: go.Figure,
    row: int,
    side: Side,
    lines: list[Line],
    x: str,
    factor: float,
    whole: float,
    explained: set[str],
) -> None:
    origin = side.origin_s
    for state, look in _LOOKS.items():
        # plotly turns the labels of a whole trace, so upright ones are a trace of their own.
        turned: dict[int, list[tuple[float, float, int, str, str]]] = {0: [], -90: []}
        for place, (lane, found) in enumerate(lines):
            for span in found:
                if span.state != state:
                    continue
                begin, size = _extent(span, x, origin, factor, whole)
                if size <= (0.001 * whole if state == "waiting" else 0):
                    continue
                text, angle = _label(span, size / whole)
                turned[angle].append((begin, size, place, text, _hover(lane, span, look.label)))
        for angle, marks in turned.items():
            if not marks:
                continue
            figure.add_trace(
                go.Bar(
                    base=[mark[0] for mark in marks], x=[mark[1] for mark in marks],
                    y=[mark[2] for mark in marks], text=[mark[3] for mark in marks],
                    customdata=[mark[4] for mark in marks], name=look.label,
                    orientation="h", width=0.78, marker=look.marker(),
                    textposition="inside", textangle=angle, insidetextanchor="middle",
                    constraintext="none", textfont={"size": 11, "color": theme.on(look.colour)},
                    hovertemplate="%{customdata}<extra></extra>",
                    legendgroup=state, showlegend=state not in explained,
                ),
                row=row, col=1,
            )  # fmt: skip
            explained.add(state)
    _draw_ends(figure, row, side, lines, x, factor, explained)


def _extent(span: Span, x: str, origin: float, factor: float, whole: float) -> tuple[float, float]:
    if x == "step":
        return float(span.first), float(span.last - span.first + 1) - 0.08
    size = (span.end_s - span.start_s) * factor
    # A hair between steps makes them countable; more would look like a pause.
    return (span.start_s - origin) * factor, size - min(0.12 * size, 0.0015 * whole)


def _label(span: Span, share: float) -> tuple[str, int]:
    """Tokens of a chunk where the mark has room for the digits, and their angle."""
    if span.state not in ("prefill", "recompute") or span.tokens < 2:
        return "", 0
    text, width = f"{span.tokens:,}", share * (theme.WIDTH - 110)
    if width >= 7 * len(text) + 3:
        return text, 0
    # Upright, the lane's height is the limit: short numbers only.
    return (text, -90) if width >= 9 and len(text) <= 2 else ("", 0)


def _hover(lane: Lane, span: Span, label: str) -> str:
    steps = f"step {span.first}" if span.first >= span.last else f"steps {span.first}–{span.last}"
    lines = [f"request {theme.plot_text(lane.name)}: {label}", steps]
    if span.tokens:
        again = f", {span.recomputed:,} of them again" if span.recomputed else ""
        lines.append(f"{theme.format_count(span.tokens, 'token')} computed{again}")
    lines.append(theme.format_seconds(span.end_s - span.start_s))
    return "<br>".join(lines)


def _draw_ends(
    figure: go.Figure,
    row: int,
    side: Side,
    lines: list[Line],
    x: str,
    factor: float,
    explained: set[str],
) -> None:
    for symbol, label, aborted in (("circle", "finished", False), ("x", "aborted", True)):
        xs, ys, hover = [], [], []
        for place, (lane, found) in enumerate(lines):
            end = lane.finished
            if end is None or not found or (end.finish_reason in ("abort", "error")) != aborted:
                continue
            at = max(found[-1].end_s, end.metrics.finished_s or 0.0) - side.origin_s
            xs.append(found[-1].last + 1.0 if x == "step" else at * factor)
            ys.append(place)
            hover.append(theme.plot_text(f"request {lane.name}: {end.finish_reason}"))
        if xs:
            figure.add_trace(
                go.Scatter(
                    x=xs, y=ys, mode="markers", name=label, customdata=hover,
                    marker={"symbol": symbol, "size": 7, "color": theme.INK},
                    hovertemplate="%{customdata}<extra></extra>",
                    legendgroup=label, showlegend=label not in explained,
                ),
                row=row, col=1,
            )  # fmt: skip
            explained.add(label)


def _row(side: Side, lane: Lane, span: Span) -> Row:
    found: Row = {"side": side.name} if side.name else {}
    return found | {
        "request": lane.name,
        "state": "decode" if span.state == "frozen" else span.state,
        "first step": span.first,
        "last step": span.last,
        "from ms": round((span.start_s - side.origin_s) * 1e3, 3),
        "to ms": round((span.end_s - side.origin_s) * 1e3, 3),
        "tokens": span.tokens,
        "computed again": span.recomputed,
    }


def _takeaway(side: Side) -> str:
    run = side.run
    totals = run.totals
    words = (
        f"{theme.format_count(len(lanes(run)), 'request')} took "
        f"{theme.format_count(totals.steps, 'step')} and {theme.format_seconds(totals.duration_s)}"
    )
    if totals.preemptions:
        words += (
            f"; {theme.format_count(totals.preemptions, 'preemption')} made the engine compute "
            f"{theme.format_count(totals.recomputed_tokens, 'token')} again"
        )
    if run.steps:
        longest = max(run.steps, key=lambda step: step.duration_s)
        usual = median(step.duration_s for step in run.steps)
        others = longest.num_decode_tokens
        if longest.duration_s > 3 * usual and longest.num_prefill_tokens > 1 and others:
            words += (
                f"; in the longest step ({theme.format_seconds(longest.duration_s)}, usual "
                f"{theme.format_seconds(usual)}) {longest.num_prefill_tokens:,} prefill tokens "
                f"kept {theme.format_count(others, 'running request')} waiting"
            )
    times = [token_times(lane, run) for lane in lanes(run)]
    waits = [after - before for each in times for before, after in itertools.pairwise(each)]
    if waits:
        words += (
            "; the longest wait between two tokens of a request was "
            f"{theme.format_seconds(max(waits))}"
        )
    return (f"{side.name}: " if side.name else "") + words + "."


def _alt(side: Side, lines: list[Line]) -> str:
    of = f" of {side.name}" if side.name else ""
    told = []
    for lane, found in lines[:8]:
        states = [
            f"{_LOOKS[span.state].label} for "
            f"{theme.format_count(max(0, span.last - span.first + 1), 'step')}"
            for span in merged(found)[:6]
            if span.last >= span.first
        ]
        told.append(f"request {lane.name}: {', '.join(states) or 'nothing'}")
    more = len(lines) - len(told)
    rest = f"; and {more} more" if more > 0 else ""
    return (
        f"Timeline{of}: {theme.format_count(len(lines), 'lane')} over "
        f"{theme.format_count(len(side.run.steps), 'step')}. {'; '.join(told)}{rest}."
    )
