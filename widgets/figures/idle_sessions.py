"""The drawers: a cell for every idle session, coloured by the slowest tier that keeps its pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
    """A grid per side, a cell per session: `where` has the tier of each, in order of arrival.

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
        rows=1, cols=len(where), horizontal_spacing=0.04, subplot_titles=list(where)
    )
    theme.style_panels(figure)
    for column, side in enumerate(where.values(), start=1):
        for tier, look in TIERS.items():
            places = [place for place, found in enumerate(side) if found == tier]
            for start in range(0, len(places), theme.MAX_MARKS):
                some = places[start : start + theme.MAX_MARKS]
                figure.add_trace(_cells(some, width, look, tier), row=1, col=column)
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
        takeaway=f"{told[:1].upper()}{told[1:]}.",
        alt=f"Grids of cells, one for every idle session. {told}.",
        table=[
            {"side": name, "session": number, "tier": tier}
            for name, side in where.items()
            for number, tier in enumerate(side)
        ],
    )


def _cells(places: Sequence[int], width: int, look: theme.Look, tier: str) -> go.Bar:
    return go.Bar(
        base=[place % width + 0.06 for place in places],
        x=[0.88] * len(places),
        y=[place // width + 0.5 for place in places],
        width=0.88,
        orientation="h",
        marker=look.marker(),
        showlegend=False,
        customdata=[f"session {place}: {tier}" for place in places],
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
