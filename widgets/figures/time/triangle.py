"""The recompute triangle: row = step, column = position, shaded where work is done again."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import RequestStep
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import sampled
from widgets.figures.sides import Runs, Side
from widgets.figures.time.lanes import Lane, lanes

FIRST, AGAIN, KEPT = "computed for the first time", "computed again", "kept, only read"
_ROWS_WITH_GAPS = 100


def recompute_triangle(
    runs: Runs,
    *,
    request: str | None = None,
    title: str = "Which tokens each step computes",
    workload: str = "",
) -> LabFigure:
    """One request's steps as rows over its positions: computed first, computed again, kept.

    `request` is its id; None takes the one with the most steps. Bytes and FLOPs of the takeaway
    are those of the whole run, counted by the engine. Needs `trace.per_request`.
    """
    shown = given.sides(runs)
    given.need_detail(shown, "The recompute triangle")
    chosen = [choose(side, request) for side in shown]
    figure = make_subplots(
        rows=1, cols=len(shown), shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.04,
        subplot_titles=[
            theme.plot_text(_heading(*each)) for each in zip(shown, chosen, strict=True)
        ],
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown if side.name])
    depth = max((len(lane.parts) for lane in chosen), default=1)
    reach = max((p.start + p.num_tokens for lane in chosen for _, p in lane.parts), default=1)
    counts = []
    table: list[Row] = []
    for column, (side, lane) in enumerate(zip(shown, chosen, strict=True), start=1):
        parts = [part for _, part in lane.parts]
        rows = sampled(
            list(enumerate(parts)), theme.MAX_MARKS,
            lambda row: row[1].num_tokens, lambda row: row[1].num_recomputed,
        )  # fmt: skip
        counts.append((len(rows), len(parts)))
        _draw(figure, column, rows, len(parts))
        name: Row = {"side": side.name} if side.name else {}
        table += [
            name
            | {
                "step": place,
                "kept": part.start,
                "computed first": part.num_tokens - part.num_recomputed,
                "computed again": part.num_recomputed,
            }
            for place, part in enumerate(parts)
        ]
    figure.update_xaxes(
        title={"text": "position of the token (tokens, counted)"}, range=[0, reach], showgrid=True,
        dtick=1 if reach <= 96 else None, layer="above traces",
        ticklabelstep=_label_step(reach) if reach <= 96 else None,
        ticks="" if reach <= 96 else "outside",
    )  # fmt: skip
    figure.update_yaxes(
        range=[depth - 0.5, -0.5], showgrid=False, showline=False,
        dtick=1 if depth <= 6 else None,  # A step is whole.
    )  # fmt: skip
    figure.update_yaxes(title={"text": "step (counted)"}, row=1, col=1)
    height = 170 + int(min(420, max(140, 7 * depth)))
    figure.update_layout(
        theme.layout(title, height=height, panels=True, barmode="overlay", bargap=0)
    )
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload, given.left_out(shown, counts, "steps")),
        takeaway=given.told(shown, _takeaway(shown, chosen)),
        alt=_alt(shown, chosen),
        table=table,
    )


def choose(side: Side, request: str | None) -> Lane:
    """The lane of a request id; None is the one with the most steps. Raises ValueError."""
    found = [lane for lane in lanes(side.run) if lane.parts]
    if not found:
        raise ValueError(f"{side.called()} has no step that computed anything")
    if request is None:
        return max(found, key=lambda lane: len(lane.parts))
    for lane in found:
        if request in (lane.key[0], lane.name):
            return lane
    names = ", ".join(lane.key[0] for lane in found[:8])
    raise ValueError(f"{side.called()} has no request {request!r}; it has {names}")


def totals(lane: Lane) -> tuple[int, int]:
    """Tokens computed in all, and how many of those again."""
    computed = sum(part.num_tokens for _, part in lane.parts)
    return computed, sum(part.num_recomputed for _, part in lane.parts)


def _label_step(reach: int) -> int:
    return next(n for n in (1, 2, 5, 10, 20, 50, 100) if reach <= 12 * n or n == 100)


def _heading(side: Side, lane: Lane) -> str:
    computed, again = totals(lane)
    text = f"{computed:,} computed, {again:,} again"
    return f"{side.name}: {text}" if side.name else text


def _draw(
    figure: go.Figure, column: int, rows: Sequence[tuple[int, RequestStep]], total: int
) -> None:
    looks = {
        KEPT: theme.Look(KEPT, theme.FAINT),
        AGAIN: theme.Look(AGAIN, theme.STATES["recompute"].colour, "/"),
        FIRST: theme.Look(FIRST, theme.STATES["decode"].colour),
    }
    cells: dict[str, list[tuple[int, int, int]]] = {name: [] for name in looks}
    for place, part in rows:
        again_end = part.start + part.num_recomputed
        cells[KEPT].append((place, 0, part.start))
        cells[AGAIN].append((place, part.start, part.num_recomputed))
        cells[FIRST].append((place, again_end, part.num_tokens - part.num_recomputed))
    # Between rows of a few pixels a gap falls on some and not on others, and draws stripes.
    thickness = 0.86 if total <= _ROWS_WITH_GAPS else -(-total // len(rows))
    for name, look in looks.items():
        some = [cell for cell in cells[name] if cell[2]]
        # An empty bar keeps the legend whole where a side has none of a kind.
        figure.add_trace(
            go.Bar(
                base=[a for _, a, _ in some] or [0], x=[n for *_, n in some] or [0],
                y=[p for p, *_ in some] or [0], orientation="h", width=thickness,
                name=name, marker=look.marker(), legendgroup=name, showlegend=column == 1,
                hovertemplate="step %{y}: %{x} tokens " + name + "<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip


def _takeaway(shown: list[Side], chosen: list[Lane]) -> str:
    if len(shown) == 2:
        first, second = shown[0].run.totals, shown[1].run.totals
        kept = second.peak_kv_bytes_used - first.peak_kv_bytes_used
        avoided = first.flops - second.flops
        if kept > 0 and avoided > 0:
            return (
                f"{theme.format_bytes(kept)} of keys and values kept, "
                f"{theme.format_flops(avoided)} avoided: {theme.format_flops(first.flops)} "
                f"({shown[0].name}) against {theme.format_flops(second.flops)} ({shown[1].name})."
            )
    told = []
    for side, lane in zip(shown, chosen, strict=True):
        computed, again = totals(lane)
        share = theme.format_percent(again / computed) if computed else "none"
        flops = theme.format_flops(side.run.totals.flops)
        told.append(
            f"{side.called('the run')} computed {theme.format_count(computed, 'token')}, "
            f"{share} of them again, {flops} in all"
        )
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}."


def _alt(shown: list[Side], chosen: list[Lane]) -> str:
    told = []
    for side, lane in zip(shown, chosen, strict=True):
        computed, again = totals(lane)
        reach = max(part.start + part.num_tokens for _, part in lane.parts)
        told.append(
            f"{side.called('The run')}: {theme.format_count(len(lane.parts), 'row')} over "
            f"{theme.format_count(reach, 'position')}, {computed:,} cells computed, "
            f"{again:,} of them again."
        )
    return "Triangle of steps (rows) by token positions (columns). " + " ".join(told)
