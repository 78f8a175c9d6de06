"""What the KV memory that was taken held over a run: shares of tokens, reservations and holes.

Taken is what no other request could use: owned, reserved, or free in holes too small.
"""

from __future__ import annotations

import plotly.graph_objects as go

from minserve.trace import MemoryShares
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sides import Runs

KINDS: dict[str, theme.Look] = {
    "used": theme.Look("holds tokens", "#44AA99"),
    "future": theme.Look("empty, filled later", "#DDCC77", "."),
    "internal": theme.Look("empty, never filled", "#CC6677", "/"),
    "external": theme.Look("free, in holes too small", "#444444", "x"),
}
"""A field of `MemoryShares` that is taken -> its look, the useful one first."""


def memory_shares(
    runs: Runs, *, title: str = "What the taken KV memory held", workload: str = ""
) -> LabFigure:
    """A stacked bar per side: what the taken bytes were good for, summed over steps.

    The first part of a bar is `MemoryShares.useful`.
    """
    shown = given.sides(runs)
    found = {side.name: MemoryShares.of(side.run.steps) for side in shown}
    whole = {name: shares.taken or 1 for name, shares in found.items()}
    figure = go.Figure()
    names = [side.label or "the run" for side in shown]
    for kind, look in KINDS.items():
        sizes = [getattr(found[side.name], kind) / whole[side.name] for side in shown]
        figure.add_trace(
            go.Bar(
                x=sizes, y=names, orientation="h", name=look.label, marker=look.marker(),
                text=[theme.format_percent(size) if size >= 0.055 else "" for size in sizes],
                textposition="inside", insidetextanchor="middle", textangle=0,
                constraintext="none", textfont={"size": 12, "color": theme.on(look.colour)},
                hovertemplate=look.label + ": %{x:.1%}<extra>%{y}</extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(
        range=[0, 1],
        tickformat=".0%",
        title={"text": "share of taken KV memory, over all steps (%, counted)"},
    )
    figure.update_yaxes(autorange="reversed", showline=False, showgrid=False)
    figure.update_layout(
        theme.layout(
            title,
            height=170 + 44 * len(shown),
            margin={"t": 84},
            barmode="stack",
            bargap=0.3,
            legend={"traceorder": "normal"},
        )
    )
    told = "; ".join(
        f"{side.called('the run')}: {theme.format_percent(found[side.name].useful)}"
        for side in shown
    )
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload),
        takeaway=given.told(
            shown, f"Share of taken KV memory that holds tokens (counted): {told}."
        ),
        alt="Stacked bars of the KV memory that was taken. "
        + " ".join(
            f"{side.called('The run')}: "
            + ", ".join(
                f"{look.label} "
                f"{theme.format_percent(getattr(found[side.name], kind) / whole[side.name])}"
                for kind, look in KINDS.items()
            )
            + "."
            for side in shown
        ),
        table=[
            _row(side.name, look.label, getattr(found[side.name], kind) / whole[side.name])
            for side in shown
            for kind, look in KINDS.items()
        ],
    )


def _row(name: str, label: str, share: float) -> Row:
    side: Row = {"side": name} if name else {}
    return side | {"what": label, "share of taken KV memory": round(share, 4)}
