"""What a lower tier gains: a returning session's first token by the length of its history, computed
again against loaded from the host and from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from widgets import theme
from widgets.crossing import crossing
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
    and "disk" the `min`, `median` and `max` of its rounds. The history at which a tier takes as
    long as computing is marked and named. Raises ValueError for no length.
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
    _mark_crossovers(figure, ordered, factor)
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


def crossover(ordered: Sequence[Mapping[str, Any]], way: str) -> tuple[float, float] | None:
    """Tokens and seconds where loading and computing take the same time, between two lengths on
    lines through the logarithms; None if one of them is always shorter."""
    if way not in ordered[0]:
        return None
    computed = {int(one["history"]): float(one["recompute"]["median"]) for one in ordered}
    loaded = {int(one["history"]): float(one[way]["median"]) for one in ordered}
    tokens = crossing({place: computed[place] / loaded[place] for place in computed})
    if tokens is None:
        return None
    logs = ([math.log(number) for number in numbers] for numbers in (computed, computed.values()))
    return tokens, math.exp(np.interp(math.log(tokens), *logs))


def _mark_crossovers(
    figure: go.Figure, ordered: Sequence[Mapping[str, Any]], factor: float
) -> None:
    found = [place for way in ("host", "disk") if (place := crossover(ordered, way)) is not None]
    if found:
        figure.add_scatter(
            x=[tokens for tokens, _ in found], y=[seconds * factor for _, seconds in found],
            mode="markers", name="crossover",
            marker={"symbol": "x", "size": 11, "color": theme.INK},
            hovertemplate="crossover near %{x:,.2r} tokens<extra></extra>",
        )  # fmt: skip


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
    equal = [
        f" Loading from {place} and computing take the same time near "
        f"{float(f'{found[0]:.2g}'):,.0f} tokens."
        for way, place in (("host", "the host"), ("disk", "disk"))
        if (found := crossover(ordered, way)) is not None
    ]
    return (
        f"With a history of {int(longest['history']):,} tokens, the first token comes "
        f"{' and '.join(told)} than computed again ({theme.format_seconds(computed)})."
        + "".join(equal)
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
