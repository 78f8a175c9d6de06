"""What a lower tier gains: a returning session's first token by the length of its history, computed
again against loaded from the host and from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.log_axis import log_axis

WAYS: Mapping[str, tuple[str, str]] = {
    "recompute": ("computed again", "A"),
    "host": ("loaded from the host", "B"),
    "disk": ("loaded from disk", "C"),
}
"""Key of a recorded length -> its words, and the side whose look it takes."""


def tier_latency(
    lengths: Sequence[Mapping[str, Any]],
    *,
    caption: str = "",
    kind: str = "recorded",
    title: str = "First token of a returning session",
) -> LabFigure:
    """Median seconds over tokens of history, a line per way, with the smallest and largest round.

    `lengths` is `by_length` of `minserve bench sessions`: `history`, and for "recompute", "host"
    and "disk" the `min`, `median` and `max` of its rounds. Raises ValueError for none.
    """
    if not lengths:
        raise ValueError("tier_latency needs at least one length of history")
    ordered = sorted(lengths, key=lambda one: int(one["history"]))
    x = [int(one["history"]) for one in ordered]
    ways = {name: look for name, look in WAYS.items() if name in ordered[0]}
    ends = [float(one[way][end]) for one in ordered for way in ways for end in ("min", "max")]
    factor, unit = theme.time_unit(max(ends))
    figure = go.Figure()
    for way, (label, side) in ways.items():
        middle = [float(one[way]["median"]) * factor for one in ordered]
        figure.add_trace(
            go.Scatter(
                x=x, y=middle, mode="lines+markers", name=label,
                line={"color": theme.SIDES[side], "width": 2, "dash": theme.dash(kind)},
                marker={"symbol": theme.SIDE_SYMBOLS[side], "size": 8},
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
                    "array": [float(one[way]["max"]) * factor - m
                              for one, m in zip(ordered, middle, strict=True)],
                    "arrayminus": [m - float(one[way]["min"]) * factor
                                   for one, m in zip(ordered, middle, strict=True)],
                },
                hovertemplate="%{x} tokens: %{y:.3g} " + unit + "<extra>" + label + "</extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(log_axis(x), title={"text": "history (tokens, log scale, counted)"})
    figure.update_yaxes(
        log_axis(end * factor for end in ends), showline=False,
        title={"text": f"first token ({unit}, log scale, {kind})"},
    )  # fmt: skip
    figure.update_layout(theme.layout(title, height=360))
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=_takeaway(ordered),
        alt="Lines of time to first token over the tokens of history, both axes logarithmic. "
        + " ".join(_words(one, ways) for one in ordered),
        table=[_row(one, ways) for one in ordered],
    )


def _takeaway(ordered: Sequence[Mapping[str, Any]]) -> str:
    longest = ordered[-1]
    computed = float(longest["recompute"]["median"])
    told = []
    for way, place in (("host", "the host"), ("disk", "disk")):
        if way not in longest:
            continue
        loaded = float(longest[way]["median"])
        direction = "sooner" if loaded <= computed else "later"
        factor = theme.format_ratio(max(loaded, computed) / min(loaded, computed))
        told.append(f"{factor} {direction} from {place} ({theme.format_seconds(loaded)})")
    return (
        f"With a history of {int(longest['history']):,} tokens, the first token comes "
        f"{' and '.join(told)} than computed again ({theme.format_seconds(computed)})."
    )


def _words(one: Mapping[str, Any], ways: Mapping[str, tuple[str, str]]) -> str:
    told = ", ".join(
        f"{label} {theme.format_seconds(float(one[way]['median']))}"
        for way, (label, _) in ways.items()
    )
    return f"{int(one['history']):,} tokens: {told}."


def _row(one: Mapping[str, Any], ways: Mapping[str, tuple[str, str]]) -> Row:
    return {"history": int(one["history"])} | {
        f"{label}, ms": round(float(one[way]["median"]) * 1e3, 3)
        for way, (label, _) in ways.items()
    }
