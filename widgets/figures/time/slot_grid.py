"""Slot Tetris: the batch's slots as rows, steps as columns, blocks coloured by request.

The engine's ragged batch has no fixed slots; a request is drawn in the lowest row that was free
when it first ran, which is where a static batch would have put it.
"""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import RequestStep, TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sides import Runs, Side
from widgets.figures.time.lanes import LaneKey, lane_name, lanes

_ROW_PX, _FRAME_PX = 24, 136


def slots(
    runs: Runs,
    num_slots: int | None = None,
    *,
    title: str = "Batch slots, step by step",
    workload: str = "",
) -> LabFigure:
    """Who sits in which batch slot at each step; empty slots are hatched.

    `num_slots` is the size of the batch; None takes the most that any of the runs used, so that
    shares compare. Needs `trace.per_request`.
    """
    shown = given.sides(runs)
    given.need_detail(shown, "Slot Tetris")
    grids = [occupancy(side.run) for side in shown]
    used = max((n + 1 for grid in grids for cells in grid.values() for _, n in cells), default=1)
    counts = [max(num_slots or 0, used)] * len(shown)
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True, row_heights=counts,
        vertical_spacing=min(0.3, 34 / (_ROW_PX * sum(counts) + 34)),
        subplot_titles=[
            theme.plot_text(_heading(*each)) for each in zip(shown, grids, counts, strict=True)
        ],
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown if side.name])
    table: list[Row] = []
    looks: dict[LaneKey, theme.Look] = {}
    for row, (side, grid, count) in enumerate(zip(shown, grids, counts, strict=True), start=1):
        # The same request has the same colour on every side.
        for key in grid:
            looks.setdefault(key, theme.request_look(len(looks), lane_name(key)))
        blocks = _blocks(grid)
        _draw(figure, row, blocks, looks, len(side.run.steps))
        _draw_empty(figure, row, blocks, count, len(side.run.steps))
        name = {"side": side.name} if side.name else {}
        table += [
            name | {"slot": slot, "request": lane_name(key), "first step": a, "last step": b}
            for key, slot, a, b in blocks
        ]
        figure.update_yaxes(
            row=row, col=1, range=[count - 0.5, -0.5], showgrid=False, showline=False,
            tickvals=list(range(count)) if count <= 16 else None,
            title={"text": "slot"},
        )  # fmt: skip
    figure.update_xaxes(title={"text": "engine step (counted)"}, row=len(shown), col=1)
    longest = max((len(side.run.steps) for side in shown), default=0) or 1
    figure.update_xaxes(showgrid=False, range=[0, 1.01 * longest])
    height = _FRAME_PX + min(640, _ROW_PX * sum(counts)) + 34 * (len(shown) - 1)
    figure.update_layout(
        theme.layout(title, height=max(height, 240), panels=True, barmode="overlay")
    )
    words = []
    for side, grid, count in zip(shown, grids, counts, strict=True):
        used, room = _use(grid, count, len(side.run.steps))
        if room:
            steps = theme.format_count(len(side.run.steps), "step")
            share = theme.format_percent(used / room)
            words.append(f"{side.called('the batch')}: {share} of slots busy over {steps}")
    takeaway = "; ".join(words)
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload),
        takeaway=given.told(shown, f"{takeaway[:1].upper()}{takeaway[1:]}."),
        alt=_alt(shown, grids, counts),
        table=table,
    )


def occupancy(run: TraceSnapshot) -> dict[LaneKey, list[tuple[int, int]]]:
    """Request -> (kept step, slot) for every step in which it computed something."""
    placed: dict[LaneKey, list[tuple[int, int]]] = {}
    slot_of: dict[LaneKey, int] = {}
    last = {lane.key: lane.parts[-1][0] for lane in lanes(run) if lane.parts}
    for index, step in enumerate(run.steps):
        present = dict.fromkeys(map(_key, step.requests))
        # A slot is given up after a request's last step, or while it is out of the batch.
        for key in [k for k in slot_of if k not in present]:
            del slot_of[key]
        for key in [k for k in present if k not in slot_of]:
            taken = set(slot_of.values())
            slot_of[key] = next(n for n in range(len(taken) + 1) if n not in taken)
        for key in present:
            placed.setdefault(key, []).append((index, slot_of[key]))
            if last[key] == index:
                del slot_of[key]
    return placed


def _key(part: RequestStep) -> LaneKey:
    return part.request_id, part.sample_index


def _use(
    grid: dict[LaneKey, list[tuple[int, int]]], num_slots: int, num_steps: int
) -> tuple[int, int]:
    return sum(len(cells) for cells in grid.values()), num_slots * num_steps


def _heading(side: Side, grid: dict[LaneKey, list[tuple[int, int]]], count: int) -> str:
    used, room = _use(grid, count, len(side.run.steps))
    if not room or not side.run.is_complete:
        return side.name
    busy = f"{theme.format_percent(used / room)} of slots busy"
    return f"{side.name}: {busy}" if side.name else busy


def _blocks(
    grid: dict[LaneKey, list[tuple[int, int]]],
) -> list[tuple[LaneKey, int, int, int]]:
    """(request, slot, first step, last step) of unbroken stays."""
    found: list[tuple[LaneKey, int, int, int]] = []
    for key, cells in grid.items():
        start = 0
        for place in range(1, len(cells) + 1):
            if place < len(cells) and cells[place] == (cells[place - 1][0] + 1, cells[start][1]):
                continue
            found.append((key, cells[start][1], cells[start][0], cells[place - 1][0]))
            start = place
    return found


def _draw(
    figure: go.Figure,
    row: int,
    blocks: list[tuple[LaneKey, int, int, int]],
    looks: dict[LaneKey, theme.Look],
    num_steps: int,
) -> None:
    # One trace per look: plotly's patterns are cheap per trace, and eight looks are few.
    by_look: dict[tuple[str, str], list[tuple[LaneKey, int, int, int]]] = {}
    for block in blocks:
        look = looks[block[0]]
        by_look.setdefault((look.colour, look.pattern), []).append(block)
    for some in by_look.values():
        look = looks[some[0][0]]
        sizes = [b - a + 1 for _, _, a, b in some]
        names = [lane_name(key) for key, *_ in some]
        figure.add_trace(
            go.Bar(
                base=[a for _, _, a, _ in some], x=[n - 0.12 for n in sizes],
                y=[slot for _, slot, _, _ in some], orientation="h", width=0.84,
                marker=look.marker(), showlegend=False, textangle=0,
                text=[theme.plot_text(t) if n / max(1, num_steps) * 640 > 8 * len(t) else ""
                      for t, n in zip(names, sizes, strict=True)],
                textposition="inside", insidetextanchor="middle", constraintext="none",
                textfont={"size": 11, "color": theme.on(look.colour)},
                customdata=[f"request {theme.plot_text(t)}: {theme.format_count(n, 'step')}"
                            for t, n in zip(names, sizes, strict=True)],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip


def _draw_empty(
    figure: go.Figure,
    row: int,
    blocks: list[tuple[LaneKey, int, int, int]],
    num_slots: int,
    num_steps: int,
) -> None:
    base, size, y = [], [], []
    for slot in range(num_slots):
        at = 0
        for first, last in sorted((a, b) for _, s, a, b in blocks if s == slot):
            if first > at:
                base.append(at)
                size.append(first - at)
                y.append(slot)
            at = last + 1
        if at < num_steps:
            base.append(at)
            size.append(num_steps - at)
            y.append(slot)
    if base:
        figure.add_trace(
            go.Bar(
                base=base, x=size, y=y, orientation="h", width=0.84, name="empty slot",
                marker=theme.Look("empty", theme.FAINT, "/").marker(),
                legendgroup="empty", showlegend=row == 1,
                hovertemplate="empty for %{x} steps<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip


def _alt(
    shown: list[Side], grids: list[dict[LaneKey, list[tuple[int, int]]]], counts: list[int]
) -> str:
    told = []
    for side, grid, count in zip(shown, grids, counts, strict=True):
        used, room = _use(grid, count, len(side.run.steps))
        told.append(
            f"{side.called('One run')}: {theme.format_count(len(grid), 'request')} in "
            f"{theme.format_count(count, 'slot')} over "
            f"{theme.format_count(len(side.run.steps), 'step')}, {used:,} of {room:,} cells busy."
        )
    return "Grid of batch slots by engine steps, coloured by request. " + " ".join(told)
