"""Block tables: the pages of a few requests in the order of their tokens, beside the pool.

A table is a list of page numbers. Two tables with the same number share that page; a page that a
request had to copy before it could write on it is outlined (Kwon et al., arXiv 2309.06180).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from minserve.trace import TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure
from widgets.figures.memory.page_grid import FREE, SHARED
from widgets.figures.memory.page_table import block_size_of, pages, resolve_step
from widgets.figures.sides import Run
from widgets.figures.time.lanes import LaneKey, holders, lane_name, lanes

MAX_TABLES, MAX_PAGES = 2, 24
COPIED = "copied before it was written"
_ROW_PX, _HALF, _GAP = 46, 0.34, 0.6


@dataclass(frozen=True)
class Entry:
    """A place in a block table."""

    place: int
    page: int
    tokens: int
    shared: bool
    copied_from: int | None
    """The page that stood here in the step before, where the request wrote on a copy of it."""


def block_tables(
    run: Run,
    step: int | None = None,
    *,
    requests: Sequence[str] = (),
    block_size: int | None = None,
    title: str = "",
    workload: str = "",
) -> LabFigure:
    """The block tables of some requests at one step, and the pages of the pool they point to.

    `step` is a kept step; None takes the first that copied a page, else the one with the most
    shared pages. `requests` are names; () takes the two that share the most, or have the longest
    tables. Two have lines to their pages. Needs `trace.per_request` and `trace.pages`. Raises
    ValueError where no request holds a page.
    """
    side = given.sides(run)[0]
    size = block_size_of(side.run, block_size)
    index = _telling(side.run, size) if step is None else resolve_step(side.run, step)
    tables = tables_of(side.run, index, size)
    chosen = _choose(tables, requests)
    looks = {lane.key: theme.request_look(n, lane.name) for n, lane in enumerate(lanes(side.run))}
    used = sorted({entry.page for key in chosen for entry in tables[key]})[:MAX_PAGES]
    owners = {page.number: page for page in pages(side.run, index, size)}
    columns = {page: place for place, page in enumerate(used)}
    figure = go.Figure()
    # The pool lies in the middle: a line from a table beside it crosses no other table.
    above = -(-len(chosen) // 2)
    heights = [float(n) for n in range(above)]
    middle = above + _GAP
    heights += [middle + _GAP + 1 + n for n in range(len(chosen) - above)]
    for row, key in zip(heights, chosen, strict=True):
        table = [entry for entry in tables[key] if entry.page in columns]
        if len(chosen) <= 2:
            figure.add_trace(_lines(row, table, columns, looks[key], middle))
        figure.add_traces(
            _row(
                row, [e.place for e in table], [e.tokens / size for e in table],
                [replace(looks[key], pattern=SHARED.pattern * e.shared) for e in table],
                [f"{e.page}" for e in table],
                [e.copied_from is not None for e in table], [_hover(e) for e in table],
            )
        )  # fmt: skip
    pool = [owners[page] for page in used]
    figure.add_traces(
        _row(
            middle, list(range(len(pool))), [page.tokens / size for page in pool],
            [SHARED if len(page.owners) > 1 else looks[page.owners[0]] for page in pool],
            [f"{page.number}" for page in pool], [False] * len(pool),
            [f"page {page.number}: request "
                + theme.plot_text(", ".join(map(lane_name, page.owners)))
             for page in pool],
        )
    )  # fmt: skip
    if any(len(page.owners) > 1 for page in pool):
        figure.add_trace(go.Bar(theme.legend_entry(SHARED)))
    if any(entry.copied_from is not None for key in chosen for entry in tables[key]):
        copied = theme.Look(COPIED, theme.FAINT)
        outline = copied.marker(line={"width": 2.5, "color": theme.INK})
        figure.add_trace(go.Bar({**theme.legend_entry(copied), "marker": outline}))
    figure.add_trace(go.Bar(theme.legend_entry(theme.Look("holds no token", theme.FAINT))))
    width = max(len(used), max(len(tables[key]) for key in chosen))
    figure.update_xaxes(visible=False, range=[-0.1, width + 0.1])
    figure.update_yaxes(
        range=[max([*heights, middle]) + 0.6, -0.6], showgrid=False, showline=False, ticks="",
        tickvals=[*heights, middle],
        ticktext=[f"request {theme.plot_text(lane_name(key))}" for key in chosen] + ["pool"],
    )  # fmt: skip
    number = side.run.steps[index].index
    figure.update_layout(
        theme.layout(
            title or f"Block tables during step {number}",
            height=int(110 + _ROW_PX * (max([*heights, middle]) + 1.2)),
            barmode="overlay", bargap=0,
        )
    )  # fmt: skip
    return LabFigure(
        figure=figure,
        caption=given.caption([side], workload),
        takeaway=given.told([side], _takeaway(tables, chosen, size)),
        alt=_alt(tables, chosen, number),
        table=[
            {
                "request": lane_name(key),
                "place in the table": entry.place,
                "page": entry.page,
                "tokens": entry.tokens,
                "shared": "yes" if entry.shared else "",
                "copy of page": entry.copied_from,
            }
            for key in chosen
            for entry in tables[key]
        ],
    )


def tables_of(run: TraceSnapshot, index: int, block_size: int) -> dict[LaneKey, list[Entry]]:
    """Request -> its block table during a kept step."""
    known = lanes(run)
    held = holders(run, index, known)
    before = holders(run, index - 1, known) if index else {}
    owners = {page.number: page for page in pages(run, index, block_size, known)}
    copying = run.steps[index].blocks.copied_blocks > 0
    found: dict[LaneKey, list[Entry]] = {}
    for key, part in held.items():
        # A sample that just split off had the table of the sample it split from.
        origin = before.get(key) or before.get((key[0], 0))
        old = origin.blocks if origin is not None and copying else ()
        found[key] = [
            Entry(
                place=place,
                page=page,
                tokens=max(0, min(block_size, part.stop - place * block_size)),
                shared=len(owners[page].owners) > 1,
                copied_from=_copied(old, part.blocks, place),
            )
            for place, page in enumerate(part.blocks)
        ]
    return {key: table for key, table in found.items() if table}


def _copied(old: Sequence[int], new: Sequence[int], place: int) -> int | None:
    """The page that `new[place]` is a copy of: the tables are equal up to there."""
    if not place < len(old) or old[place] == new[place] or old[:place] != new[:place]:
        return None
    return old[place]


def _telling(run: TraceSnapshot, block_size: int) -> int:
    copying = [n for n, step in enumerate(run.steps) if step.blocks.copied_blocks]
    if copying:
        return copying[0]
    resolve_step(run, None)  # refuses a run without steps

    def shared(index: int) -> tuple[int, int]:
        tables = tables_of(run, index, block_size)
        return (
            sum(entry.shared for table in tables.values() for entry in table),
            run.steps[index].blocks_used,
        )

    return max(range(len(run.steps)), key=shared)


def _choose(tables: Mapping[LaneKey, Sequence[Entry]], requests: Sequence[str]) -> list[LaneKey]:
    if not tables:
        raise ValueError(
            "no request holds a page in this step, or the trace does not say which: run with "
            'EngineConfig().with_values({"trace.per_request": True, "trace.pages": True})'
        )
    if requests:
        wanted = [k for k in tables if k[0] in requests or lane_name(k) in requests]
        if not wanted:
            raise ValueError(
                f"requests={list(requests)}: none holds a page in this step; "
                f"{', '.join(map(lane_name, tables))} do"
            )
        return wanted
    ranked = sorted(
        tables,
        key=lambda key: (-sum(entry.shared for entry in tables[key]), -len(tables[key])),
    )
    kept = set(ranked[:MAX_TABLES])
    return [key for key in tables if key in kept]


def _lines(
    row: int, table: Sequence[Entry], columns: Mapping[int, int], look: theme.Look, pool: float
) -> go.Scatter:
    """From each place of a table to its page in the pool."""
    x: list[float | None] = []
    y: list[float | None] = []
    for entry in table:
        x += [entry.place + 0.5, columns[entry.page] + 0.5, None]
        down = 1 if pool > row else -1
        y += [row + down * _HALF, pool - down * _HALF, None]
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": look.colour, "width": 1.4}, opacity=0.75,
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def _row(
    y: float,
    places: Sequence[int],
    shares: Sequence[float],
    looks: Sequence[theme.Look],
    texts: Sequence[str],
    outlined: Sequence[bool],
    hover: Sequence[str],
) -> list[go.Bar]:
    """A row of cells, each filled as far as it holds tokens."""
    empty = go.Bar(
        base=list(places), x=[0.94] * len(places), y=[y] * len(places), orientation="h",
        width=2 * _HALF, marker=FREE.marker(), showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    filled = go.Bar(
        base=list(places), x=[0.94 * share for share in shares], y=[y] * len(places),
        orientation="h", width=2 * _HALF, showlegend=False,
        marker={
            "color": [look.colour for look in looks],
            "pattern": {
                "shape": [look.pattern for look in looks], "size": 6, "solidity": 0.2,
                "fgcolor": [theme.on(look.colour) for look in looks], "fillmode": "overlay",
            },
            "line": {"width": [2.5 if each else 0 for each in outlined], "color": theme.INK},
        },
        customdata=list(hover), hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    # Not inside the fill, which may be narrower than the number.
    numbers = go.Scatter(
        x=[place + 0.94 * share / 2 if share >= 0.4 else place + 0.47
           for place, share in zip(places, shares, strict=True)],
        y=[y] * len(places), mode="text", text=list(texts), showlegend=False, hoverinfo="skip",
        textfont={"size": 12, "color": [
            theme.on(look.colour) if share >= 0.4 else theme.INK
            for look, share in zip(looks, shares, strict=True)
        ]},
    )  # fmt: skip
    return [empty, filled, numbers]


def _hover(entry: Entry) -> str:
    text = f"place {entry.place}: page {entry.page}, {theme.format_count(entry.tokens, 'token')}"
    if entry.copied_from is not None:
        text += f", a copy of page {entry.copied_from}"
    return text + ", shared" * entry.shared


def _takeaway(
    tables: Mapping[LaneKey, Sequence[Entry]], chosen: Sequence[LaneKey], block_size: int
) -> str:
    entries = [entry for key in chosen for entry in tables[key]]
    number = len({entry.page for entry in entries})
    words = (
        f"The tables of {theme.format_count(len(chosen), 'request')} name "
        f"{theme.format_count(len(entries), 'page')} of {block_size} tokens, and "
        f"{number:,} lie in the pool"
    )
    shared = len({entry.page for entry in entries if entry.shared})
    if shared:
        words += f": {theme.format_count(shared, 'page')} in more than one table"
    copies = [entry for entry in entries if entry.copied_from is not None]
    if copies:
        words += (
            f"; page {copies[0].page} is a copy of page {copies[0].copied_from}, made before its "
            "request wrote into it"
        )
    return words + "."


def _alt(tables: Mapping[LaneKey, Sequence[Entry]], chosen: Sequence[LaneKey], step: int) -> str:
    told = "; ".join(
        f"request {lane_name(key)}: pages "
        + ", ".join(f"{entry.page}{' (shared)' * entry.shared}" for entry in tables[key])
        for key in chosen
    )
    return f"Block tables during step {step}, beside the pages they point to. {told}."
