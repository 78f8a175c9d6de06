"""The drawers: a mark for each idle session, by the slowest tier that keeps its pages."""

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
    "gone": theme.Look("gone: to be computed again", theme.INK, "x"),
}
"""Tier -> its look, the fastest first."""
SYMBOLS = {"device": "square", "host": "circle", "disk": "diamond", "gone": "x-thin"}
"""Tier -> the marker of a session there."""


def idle_sessions(
    where: Mapping[str, Sequence[str]],
    runs: Runs | None = None,
    *,
    caption: str = "",
    title: str = "Where idle sessions are kept",
) -> LabFigure:
    """A grid per side, a mark per session: `where` has the tier of each, in order of arrival.

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
    cell = min(22.0, (theme.WIDTH - 60) / (width * len(where)))
    figure = make_subplots(
        rows=1,
        cols=len(where),
        horizontal_spacing=0.04,
        subplot_titles=[theme.plot_text(name) for name in where],
    )
    theme.style_panels(figure)
    for column, side in enumerate(where.values(), start=1):
        for tier in TIERS:
            some = [number for number, at in enumerate(side) if at == tier]
            for start in range(0, len(some), theme.MAX_MARKS):
                cut = some[start : start + theme.MAX_MARKS]
                figure.add_trace(_marks(cut, width, tier, 0.62 * cell), row=1, col=column)
    for tier, look in TIERS.items():
        figure.add_trace(_entry(tier, look))
    figure.update_xaxes(visible=False, range=[-0.6, width - 0.4])
    figure.update_yaxes(visible=False, range=[rows - 0.4, -0.6])
    figure.update_layout(
        theme.layout(
            title, height=int(130 + max(60.0, cell * rows)), panels=True,
            margin={"l": 8, "r": 8, "b": 12},
        )
    )  # fmt: skip
    told = "; ".join(f"{name}: {_words(side)}" for name, side in where.items())
    return LabFigure(
        figure=figure,
        caption=given.caption(given.sides(runs)) if runs is not None else caption,
        takeaway=given.told(
            given.sides(runs) if runs is not None else [], f"{told[:1].upper()}{told[1:]}."
        ),
        alt=f"Grids with a mark for every idle session. {told}.",
        table=[
            {"side": name, "session": number, "tier": tier}
            for name, side in where.items()
            for number, tier in enumerate(side)
        ],
    )


def _marks(some: Sequence[int], width: int, tier: str, size: float) -> go.Scatter:
    return go.Scatter(
        x=[number % width for number in some],
        y=[number // width for number in some],
        mode="markers",
        marker=_marker(tier, size),
        showlegend=False,
        customdata=list(some),
        hovertemplate=f"session %{{customdata}}: {TIERS[tier].label}<extra></extra>",
    )


def _marker(tier: str, size: float) -> dict[str, object]:
    marker: dict[str, object] = {"symbol": SYMBOLS[tier], "size": size}
    marker["color"] = TIERS[tier].colour
    # A thin cross is nothing but its line.
    line = {"width": 1.2, "color": theme.INK} if tier == "gone" else {"width": 0}
    return marker | {"line": line}


def _entry(tier: str, look: theme.Look) -> go.Scatter:
    return go.Scatter(x=[None], y=[None], mode="markers", name=look.label, marker=_marker(tier, 10))


def _words(side: Sequence[str]) -> str:
    kept = len(side) - list(side).count("gone")
    parts = ", ".join(
        f"{list(side).count(tier):,} {look.label}"
        for tier, look in TIERS.items()
        if tier != "gone" and tier in side
    )
    return f"{kept:,} of {len(side):,} sessions kept" + (f" ({parts})" if parts else "")
