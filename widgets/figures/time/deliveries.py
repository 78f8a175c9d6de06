"""Typewriters: the same text written by two runs, token by token, at the times it was delivered.

As data (`typed`, for Replay) and as a figure of tokens over time. Knows nothing about widgets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import thinned
from widgets.figures.sides import Runs, Side
from widgets.figures.time.triangle import choose
from widgets.pieces import Texts, pieces

_RECENT = 5


@dataclass(frozen=True)
class Delivery:
    """One delivered token."""

    at_s: float
    """Seconds since the request arrived."""
    step: int
    """Index of the kept step that delivered it."""
    token_id: int
    text: str
    """What the token added to the text; "" without a tokenizer or inside a character."""


def typed(
    runs: Runs, tokenizer: Texts | None = None, *, request: str | None = None
) -> dict[str, list[Delivery]]:
    """Deliveries of one request per side: its id, or the one with the most steps."""
    shown = given.sides(runs)
    given.need_detail(shown, "A typewriter")
    return {side.name: _typed(side, tokenizer, request) for side in shown}


def _typed(side: Side, tokenizer: Texts | None, request: str | None) -> list[Delivery]:
    lane = choose(side, request)
    origin = side.run.steps[lane.parts[0][0]].start_s
    if lane.finished is not None:
        origin = lane.finished.metrics.arrival_s
    tokens = [(index, token) for index, part in lane.parts for token in part.new_token_ids]
    texts = pieces(tokenizer, [token for _, token in tokens])
    return [
        Delivery(side.run.steps[index].end_s - origin, index, token, text)
        for (index, token), text in zip(tokens, texts, strict=True)
    ]


def typewriters(
    runs: Runs,
    tokenizer: Texts | None = None,
    *,
    request: str | None = None,
    title: str = "Tokens on the page over time",
    workload: str = "",
) -> LabFigure:
    """One request's delivered tokens over time, a line per side; slower is flatter."""
    shown = given.sides(runs)
    lines = typed(runs, tokenizer, request=request)
    longest = max((line[-1].at_s for line in lines.values() if line), default=0.0)
    factor, unit = theme.time_unit(longest)
    figure = go.Figure()
    table: list[Row] = []
    counts = []
    for place, side in enumerate(shown):
        line = lines[side.name]
        name: Row = {"side": side.name} if side.name else {}
        table += [
            name | {"token": n, "ms": round(d.at_s * 1e3, 3), "text": d.text}
            for n, d in enumerate(line, start=1)
        ]
        # With the origin before them, no more marks than a figure can carry.
        numbered = _thin(line, theme.MAX_MARKS - 1)
        counts.append((len(numbered), len(line)))
        figure.add_trace(
            go.Scatter(
                x=[0.0, *(d.at_s * factor for _, d in numbered)],
                y=[0, *(n for n, _ in numbered)],
                mode="lines", name=side.label or "the run", showlegend=len(shown) > 1,
                line={"color": side.colour, "width": 2.5, "dash": side.dash, "shape": "hv"},
                hovertemplate="%{y} tokens after %{x:.4g}<extra>" + side.label + "</extra>",
            )
        )  # fmt: skip
        if line:
            # Lines that end together would write over each other.
            before = [lines[each.name][-1].at_s for each in shown[:place] if lines[each.name]]
            below = any(abs(end_s - line[-1].at_s) < 0.3 * longest for end_s in before)
            _draw_end(figure, side, line, factor, below, longest)
    most = max((len(line) for line in lines.values()), default=1)
    figure.update_xaxes(
        title=given.axis_title("time since arrival", unit, shown),
        range=[0, 1.02 * factor * longest or 1.0],
    )
    figure.update_yaxes(
        title={"text": "tokens delivered (counted)"}, range=[0, 1.15 * max(1, most)], showline=False
    )
    figure.update_layout(theme.layout(title, height=320))
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, given.left_out(shown, counts, "tokens")),
        takeaway=given.told(shown, _takeaway(shown, lines)),
        alt="Tokens delivered over time as rising steps. "
        + " ".join(_alt(side, lines[side.name]) for side in shown),
        table=table,
    )


def _thin(line: list[Delivery], limit: int) -> list[tuple[int, Delivery]]:
    """Tokens with their numbers; both sides of the longest wait between two of them are kept."""
    numbered = list(enumerate(line, start=1))
    waits = [0.0, *(b.at_s - a.at_s for a, b in itertools.pairwise(line))]
    after = max(range(len(line)), key=waits.__getitem__, default=0)

    def beside(pair: tuple[int, Delivery]) -> float:
        return -float(pair[0] == after) + float(pair[0] == after + 1)

    return thinned(numbered, limit, lambda pair: pair[0], beside)


def _draw_end(
    figure: go.Figure, side: Side, line: list[Delivery], factor: float, below: bool, longest: float
) -> None:
    # Where the line ends early there is room on its right, otherwise on its left.
    beside = "right" if line[-1].at_s < 0.6 * longest else "left"
    where = f"{'bottom' if below else 'top'} {beside}"
    figure.add_trace(
        go.Scatter(
            x=[line[-1].at_s * factor], y=[len(line)], mode="markers+text", showlegend=False,
            marker={"symbol": side.symbol, "size": 10, "color": side.colour},
            text=[
                (f"{side.label}: " if side.label else "")
                + f"{theme.format_count(len(line), 'token')}, "
                + theme.format_seconds(line[-1].at_s)
            ],
            textposition=where, textfont={"color": side.colour, "size": 12},
            cliponaxis=False, hoverinfo="skip",
        )
    )  # fmt: skip


def pace(line: list[Delivery]) -> tuple[float, float] | None:
    """Median seconds between the first and between the last few tokens; None for too few."""
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(line)]
    if len(gaps) < 2 * _RECENT:
        return None
    return median(gaps[:_RECENT]), median(gaps[-_RECENT:])


def _takeaway(shown: list[Side], lines: Mapping[str, list[Delivery]]) -> str:
    told = []
    for side in shown:
        line = lines[side.name]
        if not line:
            told.append(f"{side.called('the run')} delivered nothing")
            continue
        text = (
            f"{side.called('the run')}: {theme.format_count(len(line), 'token')} in "
            f"{theme.format_seconds(line[-1].at_s)}"
        )
        found = pace(line)
        if found is not None:
            text += (
                f", first tokens {theme.format_seconds(found[0])} apart, "
                f"last ones {theme.format_seconds(found[1])}"
            )
        told.append(text)
    paces = [pace(lines[side.name]) for side in shown]
    if len(shown) == 2 and all(found is not None and found[1] > 0 for found in paces):
        first, second = paces
        assert first is not None and second is not None
        ratio = first[1] / second[1]
        if not 0.95 <= ratio <= 1.05:
            slow, fast = (shown[0], shown[1]) if ratio > 1 else (shown[1], shown[0])
            factor = theme.format_ratio(max(ratio, 1 / ratio))
            told.append(f"at the end {slow.name} takes {factor} the time of {fast.name} per token")
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}."


def _alt(side: Side, line: list[Delivery]) -> str:
    if not line:
        return f"{side.called('The run')}: nothing delivered."
    half = next(d for n, d in enumerate(line, start=1) if 2 * n >= len(line))
    return (
        f"{side.called('The run')}: first token after {theme.format_seconds(line[0].at_s)}, half "
        f"of {len(line):,} after {theme.format_seconds(half.at_s)}, all after "
        f"{theme.format_seconds(line[-1].at_s)}."
    )
