"""KV bytes over time: reserved for the pool, allocated to requests, used by tokens."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import StepTrace
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import thinned
from widgets.figures.sides import Runs, Side
from widgets.metrics import allocated_bytes, keeps


def kv_bytes(
    runs: Runs, *, title: str = "KV cache: reserved, allocated, used", workload: str = ""
) -> LabFigure:
    """Bytes of the KV cache over time, counted at every step; a panel for each side.

    Reserved is the whole pool, allocated the pages that requests own, used the tokens in them. A
    pool far larger than what was allocated is named instead of drawn. A run without a cache keeps
    nothing: pages that hold a step's own keys and values until it ends are not counted.
    """
    shown = given.sides(runs)
    steps = {side.name: _thin(side) for side in shown}
    top = max((allocated_bytes(side.run, s) for side in shown for s in side.run.steps), default=0)
    pools = [_pool(side) for side in shown]
    draw_pool = all(pool <= 3 * top for pool in pools)
    divisor, unit = theme.byte_unit(max([top, *pools]) if draw_pool else top)
    counts = [(len(steps[side.name]), len(side.run.steps)) for side in shown]
    longest = given.seconds(shown)
    factor, seconds = theme.time_unit(longest)
    figure = make_subplots(
        rows=1, cols=len(shown), shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[side.label for side in shown] if len(shown) > 1 else None,
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown])
    for column, (side, pool) in enumerate(zip(shown, pools, strict=True), start=1):
        _draw(figure, column, side, steps[side.name], divisor, factor, pool if draw_pool else 0)
        if pool and not draw_pool:
            _say(figure, column, f"reserved: {theme.format_bytes(pool)}, off this scale")
        if not keeps(side.run):
            _say(figure, column, "no cache: nothing is kept between steps")
    figure.update_xaxes(
        title=given.axis_title("time", seconds, shown), range=[0, 1.02 * factor * longest or 1.0]
    )
    highest = (max([top, *pools]) if draw_pool else top) / divisor or 1.0
    figure.update_yaxes(range=[0, 1.12 * highest], showline=False)
    figure.update_yaxes(title={"text": f"KV cache ({unit}, counted)"}, col=1)
    figure.update_layout(theme.layout(title, height=340, panels=len(shown) > 1))
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, given.left_out(shown, counts, "steps")),
        takeaway=given.told(shown, _takeaway(shown)),
        alt="KV cache bytes over time as stepped areas, used inside allocated. "
        + " ".join(_alt(side) for side in shown),
        table=[_row(side, step) for side in shown for step in steps[side.name]],
    )


def _thin(side: Side) -> list[StepTrace]:
    # An area needs two points per step, and the line on top has as many.
    return thinned(
        side.run.steps, theme.MAX_MARKS // 2 - 1,
        lambda step: step.kv_bytes_allocated, lambda step: step.kv_bytes_used,
    )  # fmt: skip


def _pool(side: Side) -> int:
    reserved = max((step.kv_bytes_reserved for step in side.run.steps), default=0)
    return reserved if keeps(side.run) else 0


def _say(figure: go.Figure, column: int, text: str) -> None:
    """A note in the corner above the areas."""
    figure.add_annotation(
        text=text, x=0.98, y=1.0, xref="x domain", yref="y domain", xanchor="right", yanchor="top",
        showarrow=False, font={"size": 12}, row=1, col=column,
    )  # fmt: skip


def _draw(
    figure: go.Figure,
    column: int,
    side: Side,
    steps: Sequence[StepTrace],
    divisor: float,
    factor: float,
    pool: int,
) -> None:
    x = [factor * (step.start_s - side.origin_s) for step in steps]
    x += [factor * (step.end_s - side.origin_s) for step in steps[-1:]]
    allocated = [allocated_bytes(side.run, step) / divisor for step in steps]
    # Tokens kept when the step ends: what pages hold at their fullest within it.
    used = [
        min(step.kv_bytes_used, owned * divisor) / divisor
        for step, owned in zip(steps, allocated, strict=True)
    ]
    if pool:
        ends = [x[0], x[-1]] if x else []
        figure.add_trace(
            go.Scatter(
                x=ends, y=[pool / divisor] * len(ends), mode="lines", name="reserved (the pool)",
                line={"color": theme.INK, "width": 1.5}, legendgroup="reserved",
                showlegend=column == 1, hovertemplate="reserved %{y:.3g}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    for name, values, opacity, shape in (
        ("allocated (pages owned)", allocated, 0.2, "/"),
        ("used (tokens kept)", used, 1.0, ""),
    ):
        figure.add_trace(
            go.Scatter(
                x=x, y=values + values[-1:], mode="lines", name=name,
                line={"color": side.colour, "width": 1.2, "shape": "hv"}, fill="tozeroy",
                fillcolor=theme.translucent(side.colour, opacity),
                fillpattern={"shape": shape, "size": 6, "solidity": 0.25,
                             "fgcolor": side.colour} if shape else None,
                legendgroup=name, showlegend=column == 1,
                hovertemplate=name + " %{y:.3g}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip


def _peaks(side: Side) -> tuple[int, int]:
    totals = side.run.totals
    if not keeps(side.run):
        return 0, 0
    return totals.peak_kv_bytes_allocated, totals.peak_kv_bytes_used


def _takeaway(shown: list[Side]) -> str:
    told = []
    for side in shown:
        allocated, used = _peaks(side)
        if not allocated:
            told.append(f"{side.called('The run')} kept no keys and values between steps")
            continue
        waste = 1 - _filled(side)
        told.append(
            f"{side.called('The run')} allocated at most {theme.format_bytes(allocated)} and used "
            f"at most {theme.format_bytes(used)}; on average {theme.format_percent(waste)} of "
            "what it allocated held nothing"
        )
    return ". ".join(f"{text[:1].upper()}{text[1:]}" for text in told) + "."


def _filled(side: Side) -> float:
    """Share of allocated bytes in use, weighted by time."""
    steps = side.run.steps
    owned = sum(step.kv_bytes_allocated * step.duration_s for step in steps)
    used = sum(min(step.kv_bytes_used, step.kv_bytes_allocated) * step.duration_s for step in steps)
    return used / owned if owned else 1.0


def _alt(side: Side) -> str:
    allocated, used = _peaks(side)
    pool = _pool(side)
    return (
        f"{side.called('The run')}: reserved {theme.format_bytes(pool)}, peak allocated "
        f"{theme.format_bytes(allocated)}, peak used {theme.format_bytes(used)}."
    )


def _row(side: Side, step: StepTrace) -> Row:
    name: Row = {"side": side.name} if side.name else {}
    return name | {
        "step": step.index,
        "ms": round((step.start_s - side.origin_s) * 1e3, 3),
        "reserved bytes": step.kv_bytes_reserved if keeps(side.run) else 0,
        "allocated bytes": allocated_bytes(side.run, step),
        "used bytes": step.kv_bytes_used,
    }
