"""The page parking lot: every page of the pool over the whole run, who has it, what for.

A page is a row, a step a column. Pages that a request reserved and has not filled are hatched: no
other request could have them. Free pages in holes too small for the first in line are crossed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.trace import MemoryShares, TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.memory.memory_shares import KINDS
from widgets.figures.memory.page_grid import SHARED
from widgets.figures.memory.page_table import block_size_of, pages
from widgets.figures.sides import Runs, Side
from widgets.figures.time.lanes import LaneKey, lane_name, lanes

USED, EMPTY, STRANDED, SEVERAL = "used", "empty", "stranded", "shared"
EMPTY_LOOK = theme.Look("taken, holds no token", "rgba(128, 128, 128, 0.18)", "/", solidity=0.2)
_PANEL_PX, _FRAME_PX = 250, 150


@dataclass(frozen=True)
class Stay:
    """Neighbouring pages in one state over consecutive steps."""

    state: str
    owner: LaneKey | None
    """None where no request, or several, have them."""
    page: int
    """The first."""
    num_pages: int
    first: int
    """Index of the first kept step."""
    last: int


def parking_lot(
    runs: Runs, *, title: str = "The page parking lot", workload: str = ""
) -> LabFigure:
    """Who has which page when, a panel for each side, all on one axis of steps.

    Needs `trace.per_request` and `trace.pages`. Readable up to about 100 pages and 300 steps.
    """
    shown = given.sides(runs)
    given.need_detail(shown, "The parking lot")
    for side in shown:
        if not any(part.blocks for step in side.run.steps for part in step.requests):
            raise ValueError(
                f"the parking lot shows who has which page, and {side.called()} did not keep "
                'that: run with EngineConfig().with_values({"trace.per_request": True, '
                '"trace.pages": True})'
            )
    found = {side.name: stays(side.run) for side in shown}
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True,
        vertical_spacing=34 / (_PANEL_PX * len(shown) + 34),
        subplot_titles=[side.label for side in shown] if len(shown) > 1 else None,
    )  # fmt: skip
    theme.style_panels(figure, [side.colour for side in shown if side.name])
    looks: dict[LaneKey, theme.Look] = {}
    for side in shown:
        for lane in lanes(side.run):
            looks.setdefault(lane.key, theme.request_look(len(looks), lane.name))
    longest = max((len(side.run.steps) for side in shown), default=0) or 1
    for row, side in enumerate(shown, start=1):
        total = side.run.steps[0].blocks_total if side.run.steps else 1
        for look, some in _by_look(found[side.name], looks):
            figure.add_trace(_bars(some, look, total, longest), row=row, col=1)
        figure.update_yaxes(
            row=row, col=1, range=[total, 0], showgrid=False, title={"text": "page"}
        )
    for look in (EMPTY_LOOK, KINDS["external"], SHARED):
        if any(_look(stay, looks) is look for some in found.values() for stay in some):
            figure.add_trace(go.Bar(theme.legend_entry(look)))
    figure.update_xaxes(title={"text": "engine step (counted)"}, row=len(shown), col=1)
    figure.update_xaxes(showgrid=False, range=[0, 1.01 * longest])
    height = _FRAME_PX + _PANEL_PX * len(shown)
    figure.update_layout(
        theme.layout(title, height=height, panels=len(shown) > 1, barmode="overlay", bargap=0)
    )
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload),
        takeaway=given.told(shown, _takeaway(shown)),
        alt="Pages of the pool by engine steps, coloured by the request that has them; taken "
        "pages without a token are hatched. " + " ".join(_words(s, found[s.name]) for s in shown),
        table=[_row(side, stay) for side in shown for stay in found[side.name]],
    )


def stays(run: TraceSnapshot) -> list[Stay]:
    """The run as rectangles, page by page and step by step merged."""
    size, known = block_size_of(run, None), lanes(run)
    grid: list[list[tuple[str, LaneKey | None] | None]] = []
    for index, step in enumerate(run.steps):
        stranded = step.blocks.external_bytes > 0
        column: list[tuple[str, LaneKey | None] | None] = []
        for page in pages(run, index, size, known):
            if len(page.owners) > 1:
                column.append((SEVERAL, None))
            elif page.owners:
                column.append((USED if page.tokens else EMPTY, page.owners[0]))
            else:
                column.append((STRANDED, None) if stranded else None)
        grid.append(column)
    return list(_merged(grid))


def _merged(grid: list[list[tuple[str, LaneKey | None] | None]]) -> Iterator[Stay]:
    """Runs of equal cells along a page, then equal runs of neighbouring pages as one."""
    open_: dict[tuple[str, LaneKey | None, int, int], tuple[int, int]] = {}
    for page in range(len(grid[0]) if grid else 0):
        still: dict[tuple[str, LaneKey | None, int, int], tuple[int, int]] = {}
        for cell, some in groupby(range(len(grid)), key=lambda step: grid[step][page]):
            if cell is None:
                continue
            steps = list(some)
            key = (*cell, steps[0], steps[-1])
            first, count = open_.pop(key, (page, 0))
            still[key] = (first, count + 1)
        yield from _stays(open_)
        open_ = still
    yield from _stays(open_)


def _stays(
    some: Mapping[tuple[str, LaneKey | None, int, int], tuple[int, int]],
) -> Iterator[Stay]:
    for (state, owner, first, last), (page, count) in some.items():
        yield Stay(state, owner, page, count, first, last)


def _look(stay: Stay, looks: Mapping[LaneKey, theme.Look]) -> theme.Look:
    if stay.state == USED and stay.owner is not None:
        return looks[stay.owner]
    return {EMPTY: EMPTY_LOOK, STRANDED: KINDS["external"]}.get(stay.state, SHARED)


def _by_look(
    some: list[Stay], looks: Mapping[LaneKey, theme.Look]
) -> Iterator[tuple[theme.Look, list[Stay]]]:
    """Marks of one look share a trace, at most `theme.MAX_MARKS` of them."""
    groups: dict[tuple[str, str], tuple[theme.Look, list[Stay]]] = {}
    for stay in some:
        look = _look(stay, looks)
        groups.setdefault((look.colour, look.pattern), (look, []))[1].append(stay)
    for look, found in groups.values():
        for start in range(0, len(found), theme.MAX_MARKS):
            yield look, found[start : start + theme.MAX_MARKS]


def _bars(some: list[Stay], look: theme.Look, total: int, longest: int) -> go.Bar:
    return go.Bar(
        base=[stay.first for stay in some],
        x=[stay.last - stay.first + 1 for stay in some],
        y=[stay.page + stay.num_pages / 2 for stay in some],
        width=[stay.num_pages - 0.12 for stay in some],
        orientation="h",
        marker=look.marker(),
        showlegend=False,
        text=[_text(stay, total, longest) for stay in some],
        textposition="inside",
        insidetextanchor="middle",
        constraintext="none",
        textangle=0,
        textfont={"size": 11, "color": theme.on(look.colour)},
        customdata=[_hover(stay) for stay in some],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _text(stay: Stay, total: int, longest: int) -> str:
    """The owner's name where the rectangle has room for it."""
    if stay.state != USED or stay.owner is None:
        return ""
    name = theme.plot_text(lane_name(stay.owner))
    wide = (stay.last - stay.first + 1) / longest * (theme.WIDTH - 90)
    high = stay.num_pages / total * (_PANEL_PX - 20)
    return name if wide >= 8 * len(name) + 4 and high >= 13 else ""


def _hover(stay: Stay) -> str:
    who = (
        "no request" if stay.owner is None else f"request {theme.plot_text(lane_name(stay.owner))}"
    )
    if stay.state == SEVERAL:
        who = "several requests"
    what = {EMPTY: "holds no token", STRANDED: "in no hole large enough"}.get(stay.state, "in use")
    steps = theme.format_count(stay.last - stay.first + 1, "step")
    return f"{theme.format_count(stay.num_pages, 'page')} from {stay.page}: {who}, {what}, {steps}"


def _cells(some: list[Stay], *states: str) -> int:
    return sum(
        stay.num_pages * (stay.last - stay.first + 1) for stay in some if stay.state in states
    )


def _takeaway(shown: list[Side]) -> str:
    told = [
        f"{side.called('the run')}: {theme.format_count(len(side.run.steps), 'step')}, tokens fill "
        f"{theme.format_percent(MemoryShares.of(side.run.steps).useful)} of the taken KV memory"
        for side in shown
    ]
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]} (counted)."


def _words(side: Side, some: list[Stay]) -> str:
    requests = len({stay.owner for stay in some if stay.owner is not None})
    return (
        f"{side.called('The run')}: {theme.format_count(requests, 'request')} over "
        f"{theme.format_count(len(side.run.steps), 'step')}, "
        f"{_cells(some, USED, SEVERAL):,} cells in use, {_cells(some, EMPTY):,} taken and empty, "
        f"{_cells(some, STRANDED):,} in holes too small."
    )


def _row(side: Side, stay: Stay) -> Row:
    name: Row = {"side": side.name} if side.name else {}
    return name | {
        "pages": f"{stay.page} to {stay.page + stay.num_pages - 1}",
        "steps": f"{stay.first} to {stay.last}",
        "state": stay.state,
        "request": lane_name(stay.owner) if stay.owner is not None else "",
    }
