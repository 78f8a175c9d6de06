"""What a returning session finds: its history, or that sessions which returned before it took the
room. Kept while all are idle is not yet found: a session that returns grows, and evicts others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets import theme
from widgets.figures.lab_figure import LabFigure

OUTCOMES: dict[str, theme.Look] = {
    "found": theme.Look("history found", "#44AA99"),
    "evicted": theme.Look("kept while idle, evicted by earlier returns", "#DDCC77", "/"),
    "gone": theme.Look("gone before the first return", theme.FAINT, "x"),
}
"""Outcome -> its look, the good one first."""
_BINS = 20


def outcomes(
    where: Sequence[str], found_tokens: Sequence[int], order: Sequence[int], page: int
) -> list[str]:
    """What each return met, in the order of returns: a key of `OUTCOMES`.

    `where` and `found_tokens` are by session. Fewer tokens than a page are a chance: two random
    texts begin alike. Raises ValueError where the three are not of the same sessions.
    """
    if not len(where) == len(found_tokens) == len(order) or set(order) != set(range(len(order))):
        raise ValueError(
            f"outcomes: {len(where)} tiers, {len(found_tokens)} counts of tokens and {len(order)} "
            "returns: expected one of each for every session"
        )
    return [
        "found"
        if found_tokens[session] >= page
        else ("gone" if where[session] == "gone" else "evicted")
        for session in order
    ]


def returning_sessions(
    where: Mapping[str, Sequence[str]],
    found_tokens: Mapping[str, Sequence[int]],
    order: Sequence[int],
    *,
    page: int = 16,
    caption: str = "",
    title: str = "What sessions find when they return",
) -> LabFigure:
    """Stacked bars over the order of returns, a panel per side: found, evicted meanwhile, gone.

    `where` and `found_tokens` are of every session, by side; see `outcomes`. `page` is in tokens.
    """
    if not where or not order:
        raise ValueError("returning_sessions needs at least one side, and a return")
    met = {name: outcomes(side, found_tokens[name], order, page) for name, side in where.items()}
    size = max(1, -(-len(order) // _BINS))
    figure = make_subplots(
        rows=1, cols=len(where), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[theme.plot_text(name) for name in where],
    )  # fmt: skip
    theme.style_panels(figure)
    starts = list(range(0, len(order), size))
    for column, side in enumerate(met.values(), start=1):
        counts = [Counter(side[start : start + size]) for start in starts]
        for outcome, look in OUTCOMES.items():
            figure.add_trace(
                go.Bar(
                    x=[start + size / 2 for start in starts], width=0.9 * size,
                    y=[count[outcome] for count in counts], name=look.label,
                    marker=look.marker(), legendgroup=outcome, showlegend=column == 1,
                    hovertemplate="%{y} sessions<extra>" + look.label + "</extra>",
                ),
                row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(
        title={"text": "order of return (counted)"}, range=[0, size * len(starts)],
        # Without the ends: those of neighbouring panels would touch.
        tickvals=[n * len(order) // 4 for n in (1, 2, 3)], tickformat=",",
    )  # fmt: skip
    figure.update_yaxes(title={"text": f"sessions of each {size:,} (counted)"}, row=1, col=1)
    figure.update_layout(
        theme.layout(title, height=330, panels=True, barmode="stack", bargap=0,
                     legend={"traceorder": "normal"})
    )  # fmt: skip
    told = "; ".join(f"{name}: {_words(side)}" for name, side in met.items())
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=f"{told[:1].upper()}{told[1:]}.",
        alt=f"Stacked bars of sessions in the order in which they return. {told}.",
        table=[
            {"side": name, "returns": f"{start + 1} to {min(start + size, len(order))}"}
            | {look.label: side[start : start + size].count(key) for key, look in OUTCOMES.items()}
            for name, side in met.items()
            for start in starts
        ],
    )


def _words(side: Sequence[str]) -> str:
    counts = Counter(side)
    kept = counts["found"] + counts["evicted"]
    if not counts["evicted"]:
        return f"{counts['found']:,} of {len(side):,} sessions found their history"
    return (
        f"{kept:,} of {len(side):,} sessions were kept while idle, and {counts['found']:,} found "
        f"their history: earlier returns had evicted {counts['evicted']:,}"
    )
