"""The page map: every page of the pool, who owns it, what of it is wasted.

Its traces have the same shape at every step (`cells`), so that Replay and the frames of the
kernel-free version replace numbers and colours, never traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure
from widgets.figures.memory.page_table import (
    Page,
    PageCounts,
    block_size_of,
    count_pages,
    pages,
    resolve_step,
)
from widgets.figures.sides import Run
from widgets.figures.time.lanes import LaneKey, lane_name, lanes

SHARED = theme.Look("shared by several requests", "#EEEEEE", "x")
FREE = theme.Look("free", theme.FAINT)
CACHED = theme.Look("cached: no owner, kept for a hit", "rgba(128, 128, 128, 0.42)", ".")
WASTED = theme.Look("owned, holds no token", "rgba(128, 128, 128, 0.15)", "/", solidity=0.15)

MAX_NAMED = 260
"""Most pages of a map that writes the owner on each."""

MAX_EXPLAINED = 24
"""Most requests a legend explains; beyond, hovering over a page names its owner."""

_GAP = 0.08


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
    if not any(part.blocks for kept in side.run.steps for part in kept.requests):
        raise ValueError(
            "this trace does not say who owns which page: run with EngineConfig().with_values("
            '{"trace.per_request": True, "trace.pages": True})'
        )
    looks = {lane.key: theme.request_look(n, lane.name) for n, lane in enumerate(found)}
    width = columns or grid_columns(len(grid))
    rows = max(1, math.ceil(len(grid) / width))
    figure = go.Figure([go.Bar(**some) for some in cells(grid, looks, size, width)])
    entries = _legend(grid, looks)
    figure.add_traces(entries)
    cell = min(34.0, (theme.WIDTH - 60) / width)
    # Legend rows grow upwards, towards the title.
    top = 66 + 28 * ((len(entries) - 1) // 13)
    figure.update_xaxes(visible=False, range=[-0.02, width + 0.02])
    figure.update_yaxes(visible=False, range=[rows + 0.02, -0.02])
    number = side.run.steps[index].index
    figure.update_layout(
        theme.layout(
            title or f"The page pool during step {number}",
            height=int(top + 28 + max(60.0, cell * rows)),
            margin={"l": 8, "r": 8, "t": top, "b": 8},
            barmode="overlay", bargap=0,
        )
    )  # fmt: skip
    words = count_pages(grid, size)
    return LabFigure(
        figure=figure,
        caption=given.caption([side], workload),
        takeaway=given.told([side], _takeaway(words, size)),
        alt=_alt(words, grid, number, size),
        table=[
            {
                "page": page.number,
                "owner": ", ".join(lane_name(key) for key in page.owners)
                or ("cached" if page.cached else "free"),
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


def cells(
    grid: Sequence[Page], looks: Mapping[LaneKey, theme.Look], block_size: int, columns: int
) -> list[dict[str, Any]]:
    """Keywords of the map's bars: for every 500 pages a trace of what they hold, one of the waste.

    Equal for equal pools except in numbers, texts and colours.
    """
    made: list[dict[str, Any]] = []
    named = len(grid) <= MAX_NAMED
    for start in range(0, len(grid), theme.MAX_MARKS):
        some = grid[start : start + theme.MAX_MARKS]
        full = [page.tokens / block_size if page.owners else 1.0 for page in some]
        drawn = [_look(page, looks) for page in some]
        texts = [_text(page, looks) if named else "" for page in some]
        held_text = [text if share >= 0.5 else "" for text, share in zip(texts, full, strict=True)]
        rest_text = [text if share < 0.5 else "" for text, share in zip(texts, full, strict=True)]
        made.append(_bars(some, [0.0] * len(some), full, drawn, held_text, columns))
        rest = [1.0 - share for share in full]
        made.append(_bars(some, full, rest, [WASTED] * len(some), rest_text, columns))
    return made


def _bars(
    some: Sequence[Page],
    begin: Sequence[float],
    share: Sequence[float],
    drawn: Sequence[theme.Look],
    texts: Sequence[str],
    columns: int,
) -> dict[str, Any]:
    inner = 1 - _GAP
    see_through = "rgba(128, 128, 128, 0.85)"
    return {
        "base": [
            round(page.number % columns + _GAP / 2 + a * inner, 3)
            for page, a in zip(some, begin, strict=True)
        ],
        "x": [round(part * inner, 3) for part in share],
        "y": [page.number // columns + 0.5 for page in some],
        "orientation": "h",
        "width": inner,
        "showlegend": False,
        "marker": {
            "color": [look.colour for look in drawn],
            "line": {"width": 0},
            "pattern": {
                "shape": [look.pattern for look in drawn],
                "solidity": [look.solidity for look in drawn],
                # plotly's own choice for a see-through grey is lost on a dark page.
                "fgcolor": [
                    theme.on(look.colour) if look.colour.startswith("#") else see_through
                    for look in drawn
                ],
                "size": 6,
                "fillmode": "overlay",
            },
        },
        "text": list(texts),
        "textposition": "inside",
        "insidetextanchor": "middle",
        "constraintext": "none",
        "textangle": 0,
        "textfont": {"size": 10, "color": [theme.on(look.colour) for look in drawn]},
        "customdata": [_hover(page) for page in some],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _look(page: Page, looks: Mapping[LaneKey, theme.Look]) -> theme.Look:
    if not page.owners:
        return CACHED if page.cached else FREE
    return SHARED if len(page.owners) > 1 else looks[page.owners[0]]


def _text(page: Page, looks: Mapping[LaneKey, theme.Look]) -> str:
    """What is written on a page: its owner, or how many share it."""
    if len(page.owners) > 1:
        return f"×{len(page.owners)}"
    return theme.plot_text(looks[page.owners[0]].label) if page.owners else ""


def _hover(page: Page) -> str:
    if not page.owners:
        return f"page {page.number}: {'cached' if page.cached else 'free'}"
    names = theme.plot_text(", ".join(lane_name(key) for key in page.owners))
    return f"page {page.number}: request {names}, {theme.format_count(page.tokens, 'token')}"


def _legend(grid: Sequence[Page], looks: Mapping[LaneKey, theme.Look]) -> list[go.Bar]:
    shown = [WASTED, FREE]
    if any(page.cached for page in grid):
        shown.append(CACHED)
    if any(len(page.owners) > 1 for page in grid):
        shown.insert(0, SHARED)
    if len(grid) > MAX_NAMED and len(looks) <= MAX_EXPLAINED:
        # Cells too small for a name leave it to the legend.
        shown = [*looks.values(), *shown]
    return [go.Bar(theme.legend_entry(look)) for look in shown]


def _takeaway(words: PageCounts, block_size: int) -> str:
    if not words.owned:
        if words.cached:
            return f"No request owns a page; {words.cached:,} of {words.total:,} are cached."
        return f"All {words.total:,} pages are free."
    places = words.owned * block_size
    shared = f", {words.shared:,} of them shared" if words.shared else ""
    cached = f"; {words.cached:,} more are cached for a prefix hit" if words.cached else ""
    return (
        f"{words.owned:,} of {words.total:,} pages are owned{shared}; of the {places:,} token "
        f"places in them {words.wasted_tokens:,} "
        f"({theme.format_percent(words.wasted_tokens / places)}) are empty{cached}."
    )


def _alt(words: PageCounts, grid: Sequence[Page], step: int, block_size: int) -> str:
    owners: dict[str, int] = {}
    for page in grid:
        for key in page.owners:
            owners[lane_name(key)] = owners.get(lane_name(key), 0) + 1
    told = ", ".join(f"request {name} owns {n}" for name, n in list(owners.items())[:10])
    more = f" and {len(owners) - 10} more" if len(owners) > 10 else ""
    text = (
        f"Grid of {words.total:,} pages of {block_size} tokens during step {step}: "
        f"{words.owned:,} owned, {words.free:,} free"
        + (f", {words.cached:,} cached." if words.cached else ".")
    )
    return f"{text} {told}{more}." if told else text
