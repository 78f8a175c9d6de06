"""The page map: every page of the pool, who owns it, what of it is wasted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from minserve.trace import TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure
from widgets.figures.lanes import Lane, LaneKey, holders, lane_name, lanes
from widgets.figures.sides import Run

SHARED = theme.Look("shared by several requests", "#EEEEEE", "x")
FREE = theme.Look("free", theme.FAINT)
WASTED = theme.Look("owned, holds no token", "rgba(128, 128, 128, 0.15)", "/", solidity=0.15)

MAX_NAMED = 260
"""Most pages of a map that writes the owner on each."""


@dataclass(frozen=True)
class Page:
    """One page at one step."""

    number: int
    owners: tuple[LaneKey, ...]
    """Nobody: free. Several: shared."""
    tokens: int
    """Tokens it holds when the step ends."""


def pages(
    run: TraceSnapshot, step: int, block_size: int, found: Sequence[Lane] | None = None
) -> list[Page]:
    """Every page of the pool during the kept step `step`."""
    total = run.steps[step].blocks_total
    owners: dict[int, list[LaneKey]] = {}
    tokens: dict[int, int] = {}
    for key, part in holders(run, step, found).items():
        known = part.start + part.num_tokens
        for place, number in enumerate(part.blocks):
            owners.setdefault(number, []).append(key)
            held = max(0, min(block_size, known - place * block_size))
            tokens[number] = max(tokens.get(number, 0), held)
    return [Page(n, tuple(owners.get(n, ())), tokens.get(n, 0)) for n in range(total)]


def block_size_of(run: TraceSnapshot, block_size: int | None) -> int:
    """Tokens per page, from the configuration where not given."""
    size = block_size or run.header.config.get("memory.block_size")
    if not size:
        raise ValueError(
            "the page map needs the number of tokens per page, and this trace's header does not "
            "say: page_map(..., block_size=16)"
        )
    return int(size)


def resolve_step(run: TraceSnapshot, step: int | None) -> int:
    """A kept step's index: None is the fullest one, negative counts from the end."""
    if not run.steps:
        raise ValueError("this trace has no steps: run the engine before drawing its pages")
    if step is None:
        return max(range(len(run.steps)), key=lambda index: run.steps[index].blocks_used)
    index = step + len(run.steps) if step < 0 else step
    if not 0 <= index < len(run.steps):
        raise ValueError(f"step {step}: this trace keeps {len(run.steps)} steps, from 0")
    return index


def page_map(
    run: Run,
    step: int | None = None,
    *,
    block_size: int | None = None,
    columns: int | None = None,
    title: str = "",
    workload: str = "",
) -> LabFigure:
    """The pool at one step (None: the fullest): owner of each page, free pages, wasted parts.

    Needs `trace.per_request` and `trace.pages`. Readable up to about 1,000 pages.
    """
    side = given.sides(run)[0]
    index = resolve_step(side.run, step)
    size = block_size_of(side.run, block_size)
    found = lanes(side.run)
    grid = pages(side.run, index, size, found)
    if side.run.steps[index].blocks_used and not any(page.owners for page in grid):
        raise ValueError(
            "this trace does not say who owns which page: run with EngineConfig().with_values("
            '{"trace.per_request": True, "trace.pages": True})'
        )
    looks = {lane.key: theme.request_look(n, lane.name) for n, lane in enumerate(found)}
    width = columns or grid_columns(len(grid))
    rows = max(1, math.ceil(len(grid) / width))
    figure = go.Figure(page_marks(grid, looks, size, width))
    cell = min(34.0, (theme.WIDTH - 60) / width)
    figure.update_xaxes(visible=False, range=[-0.02, width + 0.02])
    figure.update_yaxes(visible=False, range=[rows + 0.02, -0.02])
    figure.update_layout(
        theme.layout(
            title or f"The page pool during step {side.run.steps[index].index}",
            height=int(94 + max(60.0, cell * rows)),
            margin={"l": 8, "r": 8, "t": 66 if len(grid) <= MAX_NAMED else 86, "b": 8},
            barmode="overlay", bargap=0,
        )
    )  # fmt: skip
    words = counts(grid, size)
    return LabFigure(
        figure=figure,
        caption=given.caption([side], workload),
        takeaway=_takeaway(words, size),
        alt=_alt(words, grid, side.run.steps[index].index, size),
        table=[
            {
                "page": page.number,
                "owner": ", ".join(lane_name(key) for key in page.owners) or "free",
                "tokens": page.tokens,
                "wasted": size - page.tokens if page.owners else 0,
            }
            for page in grid
        ],
    )


def grid_columns(num_pages: int) -> int:
    """Columns of the grid: about three times as wide as high, a round number where there is one."""
    wide = max(1, math.isqrt(3 * max(1, num_pages)))
    return next((n for n in (8, 16, 32, 64) if wide * 0.75 <= n <= wide * 1.4), wide)


def counts(grid: Sequence[Page], block_size: int) -> dict[str, int]:
    """Pages owned, free and shared; tokens held; places owned that hold none."""
    owned = [page for page in grid if page.owners]
    held = sum(page.tokens for page in owned)
    return {
        "total": len(grid),
        "owned": len(owned),
        "free": len(grid) - len(owned),
        "shared": sum(len(page.owners) > 1 for page in owned),
        "tokens": held,
        "wasted": len(owned) * block_size - held,
    }


def page_marks(
    grid: Sequence[Page], looks: Mapping[LaneKey, theme.Look], block_size: int, columns: int
) -> list[go.Bar]:
    """The marks of the grid: what is held, what is wasted, what is free."""
    held: dict[str, list[tuple[Page, float, float]]] = {}
    wasted: list[tuple[Page, float, float]] = []
    free: list[tuple[Page, float, float]] = []
    shown_as: dict[str, theme.Look] = {}
    for page in grid:
        if not page.owners:
            free.append((page, 0.0, 1.0))
            continue
        look = SHARED if len(page.owners) > 1 else looks[page.owners[0]]
        shown_as[look.label] = look
        full = page.tokens / block_size
        held.setdefault(look.label, []).append((page, 0.0, full))
        if full < 1:
            wasted.append((page, full, 1 - full))
    # In the order of the requests, whoever owns the first page.
    order = [look.label for look in looks.values()] + [SHARED.label]
    names = sorted(held, key=order.index)
    # Cells too small for a name leave it to the legend.
    named = len(grid) <= MAX_NAMED
    texts = {p.number: shown_text(p, looks) if named else "" for p in grid}
    traces = []
    for label in names:
        look = shown_as[label]
        traces += _bars(held[label], look, columns, look is SHARED or not named, texts)
    if wasted:
        traces += _bars(wasted, WASTED, columns, True, texts)
    if free:
        traces += _bars(free, FREE, columns, True, texts)
    return traces


def shown_text(page: Page, looks: Mapping[LaneKey, theme.Look]) -> str:
    """What is written on a page: its owner, or how many share it."""
    if len(page.owners) > 1:
        return f"×{len(page.owners)}"
    return looks[page.owners[0]].label if page.owners else ""


def _bars(
    cells: Sequence[tuple[Page, float, float]],
    look: theme.Look,
    columns: int,
    legend: bool,
    texts: Mapping[int, str],
) -> list[go.Bar]:
    gap, made = 0.08, []
    for start in range(0, len(cells), theme.MAX_MARKS):
        some = cells[start : start + theme.MAX_MARKS]
        made.append(
            go.Bar(
                base=[p.number % columns + gap / 2 + a * (1 - gap) for p, a, _ in some],
                x=[share * (1 - gap) for _, _, share in some],
                y=[p.number // columns + 0.5 for p, _, _ in some],
                orientation="h", width=1 - gap, name=look.label, marker=look.marker(),
                legendgroup=look.label, showlegend=legend and start == 0,
                text=[texts[p.number] if share >= 0.5 else "" for p, _, share in some],
                textposition="inside", insidetextanchor="middle", constraintext="none",
                textangle=0, textfont={"size": 10, "color": theme.on(look.colour)},
                customdata=[_hover(p) for p, _, _ in some],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )  # fmt: skip
    return made


def _hover(page: Page) -> str:
    if not page.owners:
        return f"page {page.number}: free"
    names = ", ".join(lane_name(key) for key in page.owners)
    return f"page {page.number}: request {names}, {theme.format_count(page.tokens, 'token')}"


def _takeaway(words: Mapping[str, int], block_size: int) -> str:
    if not words["owned"]:
        return f"All {words['total']:,} pages are free."
    places = words["owned"] * block_size
    shared = f", {words['shared']:,} of them shared" if words["shared"] else ""
    return (
        f"{words['owned']:,} of {words['total']:,} pages are owned{shared}; of the "
        f"{places:,} token places in them {words['wasted']:,} "
        f"({theme.format_percent(words['wasted'] / places)}) are empty."
    )


def _alt(words: Mapping[str, int], grid: Sequence[Page], step: int, block_size: int) -> str:
    owners: dict[str, int] = {}
    for page in grid:
        for key in page.owners:
            owners[lane_name(key)] = owners.get(lane_name(key), 0) + 1
    told = ", ".join(f"request {name} owns {n}" for name, n in list(owners.items())[:10])
    more = f" and {len(owners) - 10} more" if len(owners) > 10 else ""
    return (
        f"Grid of {words['total']:,} pages of {block_size} tokens during step {step}: "
        f"{words['owned']:,} owned, {words['free']:,} free. {told}{more}".rstrip(". ")
        + "."
    )
