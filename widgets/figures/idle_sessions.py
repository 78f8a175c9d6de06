"""The drawers: idle sessions row by row, coloured by the slowest tier that keeps their pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure
from widgets.figures.sides import Runs

TIERS: dict[str, theme.Look] = {
    "device": theme.Look("on the device", "#44AA99"),
    "host": theme.Look("in host memory", "#88CCEE", "."),
    "disk": theme.Look("on disk", "#DDCC77", "/"),
    "gone": theme.Look("gone: to be computed again", theme.FAINT, "x"),
}
"""Tier -> its look, the fastest first."""


def idle_sessions(
    where: Mapping[str, Sequence[str]],
    runs: Runs | None = None,
    *,
    caption: str = "",
    title: str = "Where idle sessions are kept",
) -> LabFigure:
    """A grid per side, a place per session: `where` has the tier of each, in order of arrival.

    The provenance is that of `runs`, or `caption`. Raises ValueError for an unknown tier.
    """
    if not where or not all(where.values()):
        raise ValueError("idle_sessions needs at least one side, and a session on each")
    unknown = {tier for side in where.values() for tier in side} - set(TIERS)
    if unknown:
        raise ValueError(f"unknown tiers {sorted(unknown)}: expected {', '.join(TIERS)}")
    most = max(len(side) for side in where.values())
    width = max(1, math.isqrt(5 * most // max(1, len(where))))
    rows = math.ceil(most / width)
    figure = make_subplots(
        rows=1,
        cols=len(where),
        horizontal_spacing=0.04,
        subplot_titles=[theme.plot_text(name) for name in where],
    )
    theme.style_panels(figure)
    for column, side in enumerate(where.values(), start=1):
        for tier, some in _stretches(side, width).items():
            for start in range(0, len(some), theme.MAX_MARKS):
                cut = some[start : start + theme.MAX_MARKS]
                figure.add_trace(_bars(cut, width, tier), row=1, col=column)
    for look in TIERS.values():
        figure.add_trace(go.Bar(theme.legend_entry(look)))
    figure.update_xaxes(visible=False, range=[-0.1, width + 0.1])
    figure.update_yaxes(visible=False, range=[rows + 0.1, -0.1])
    cell = min(22.0, (theme.WIDTH - 60) / (width * len(where)))
    figure.update_layout(
        theme.layout(
            title, height=int(130 + max(60.0, cell * rows)), panels=True,
            margin={"l": 8, "r": 8, "b": 12}, barmode="overlay", bargap=0,
        )
    )  # fmt: skip
    told = "; ".join(f"{name}: {_words(side)}" for name, side in where.items())
    return LabFigure(
        figure=figure,
        caption=given.caption(given.sides(runs)) if runs is not None else caption,
        takeaway=given.told(
            given.sides(runs) if runs is not None else [], f"{told[:1].upper()}{told[1:]}."
        ),
        alt=f"Grids with a place for every idle session. {told}.",
        table=[
            {"side": name, "session": number, "tier": tier}
            for name, side in where.items()
            for number, tier in enumerate(side)
        ],
    )


def _stretches(side: Sequence[str], width: int) -> dict[str, list[tuple[int, int]]]:
    """Tier -> (first session, how many): neighbours in a row of the grid are drawn as one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row in range(0, len(side), width):
        for tier, some in groupby(range(row, min(row + width, len(side))), key=side.__getitem__):
            places = list(some)
            found.setdefault(tier, []).append((places[0], len(places)))
    return found


def _bars(some: Sequence[tuple[int, int]], width: int, tier: str) -> go.Bar:
    return go.Bar(
        base=[first % width for first, _ in some],
        x=[count for _, count in some],
        y=[first // width + 0.5 for first, _ in some],
        width=0.88,
        orientation="h",
        marker=TIERS[tier].marker(),
        showlegend=False,
        customdata=[f"{tier}: sessions {first} to {first + n - 1}" for first, n in some],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _words(side: Sequence[str]) -> str:
    kept = len(side) - list(side).count("gone")
    parts = ", ".join(
        f"{list(side).count(tier):,} {look.label}"
        for tier, look in TIERS.items()
        if tier != "gone" and tier in side
    )
    return f"{kept:,} of {len(side):,} sessions kept" + (f" ({parts})" if parts else "")
