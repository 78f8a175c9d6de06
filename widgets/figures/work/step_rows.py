"""The rows of one step: a bar per request, its tokens and the padding behind them."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.execution.padding import padding_lens
from minserve.trace import StepTrace, TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.time.lanes import lane_name
from widgets.figures.sampling import sampled
from widgets.figures.sides import Runs, Side

TOKENS = theme.Look("tokens", "#44AA99")
PADDING = theme.Look("padding, computed and dropped", "#CC6677", "/")
_BAR_PX, _FRAME_PX = 22, 140
MAX_BARS = 40
"""Most requests of a side: more do not read."""


def step_rows(
    runs: Runs, step: int | None = None, *, title: str = "The rows of one step", workload: str = ""
) -> LabFigure:
    """What every side computed in one kept step; the sentence counts the whole run.

    `step` is its place among the kept ones; None takes the first side's with the most rows. Needs
    `trace.per_request`. Raises ValueError where a side has no such step.
    """
    shown = given.sides(runs)
    given.need_detail(shown, "The rows of a step")
    first = shown[0].run.steps
    if step is None:
        step = max(range(len(first)), key=lambda n: first[n].num_rows, default=0)
    if not all(0 <= step < len(side.run.steps) for side in shown):
        raise ValueError(f"step_rows(step={step}): expected a step that every side has kept")
    every = [_bars(side.run, side.run.steps[step]) for side in shown]
    bars = [sampled(some, MAX_BARS, lambda bar: bar[1], lambda bar: bar[2]) for some in every]
    counts = [(len(some), len(each)) for some, each in zip(bars, every, strict=True)]
    figure = make_subplots(
        rows=1, cols=len(shown), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[theme.plot_text(_heading(side, step)) for side in shown],
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown if side.name])
    for column, some in enumerate(bars, start=1):
        names = [theme.plot_text(name) for name, _, _ in some]
        for look, sizes in (
            (TOKENS, [tokens for _, tokens, _ in some]),
            (PADDING, [padding for *_, padding in some]),
        ):
            figure.add_trace(
                go.Bar(
                    x=sizes, y=names, orientation="h", name=look.label, marker=look.marker(),
                    legendgroup=look.label, showlegend=column == 1,
                    hovertemplate="request %{y}: %{x} rows<extra>" + look.label + "</extra>",
                ),
                row=1, col=column,
            )  # fmt: skip
    widest = max(sum(sizes) for some in bars for _, *sizes in some)
    figure.update_xaxes(range=[0, 1.02 * widest], title={"text": "rows (counted)"})
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, showline=False)
    figure.update_yaxes(title={"text": "request"}, row=1, col=1)
    height = _FRAME_PX + _BAR_PX * max(len(some) for some in bars)
    figure.update_layout(
        theme.layout(title, height=height, panels=True, barmode="stack", bargap=0.2)
    )
    told = "; ".join(_told(side) for side in shown)
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, given.left_out(shown, counts, "requests")),
        takeaway=given.told(shown, f"{told[:1].upper()}{told[1:]}."),
        alt="Bars of the rows that one step computes for each request, its tokens and the padding "
        f"behind them. {told}.",
        table=[
            _row(side.name, name, tokens, padding)
            for side, some in zip(shown, bars, strict=True)
            for name, tokens, padding in some
        ],
    )


def _bars(run: TraceSnapshot, step: StepTrace) -> list[tuple[str, int, int]]:
    """(request, tokens, padding), in the order of the batch."""
    kind = str(run.header.config.get("kernels.padding", "none"))
    tokens = [part.num_tokens for part in step.requests]
    names = [lane_name((part.request_id, part.sample_index)) for part in step.requests]
    if kind in ("longest", "batch"):
        bars = [(name, n, max(tokens) - n) for name, n in zip(names, tokens, strict=True)]
        idle = step.num_padded_rows - sum(padding for *_, padding in bars)
        return bars + [("left", 0, idle)] * (kind == "batch" and idle > 0)
    found = [(name, n, 0) for name, n in zip(names, tokens, strict=True)]
    added = sum(padding_lens(kind, tokens))
    return found + [("padding", 0, added)] * bool(added)


def _heading(side: Side, step: int) -> str:
    rows = theme.format_count(side.run.steps[step].num_rows, "row")
    return f"{side.name}: {rows}" if side.name else rows


def _told(side: Side) -> str:
    totals = side.run.totals
    rows = totals.prefill_tokens + totals.decode_tokens + totals.padded_rows
    if not totals.padded_rows:
        return f"{side.called()} computes {theme.format_count(rows, 'row')}, all of them tokens"
    share = theme.format_percent(totals.padded_rows / rows)
    return f"{side.called()} computes {theme.format_count(rows, 'row')}, {share} of them padding"


def _row(side: str, request: str, tokens: int, padding: int) -> Row:
    named: Row = {"side": side} if side else {}
    return named | {"request": request, "tokens": tokens, "padding": padding}
