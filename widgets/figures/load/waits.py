"""How long each request waited for its first token, over the time at which it was due.

Under a load that the server can carry the marks lie flat. Above its capacity they rise for as long
as the load lasts, whatever the average says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import plotly.graph_objects as go

from minserve.trace.summary import distribution
from widgets import theme
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sampling import sampled


@dataclass(frozen=True)
class Asked:
    """A request as its client saw it."""

    due_s: float
    """When it had to be sent, from the start of the load."""
    ttft_s: float | None
    """From then to its first token; None if it was refused."""


def waits(
    loads: Mapping[str, Sequence[Asked]],
    *,
    caption: str = "",
    kind: str = "measured",
    title: str = "Time to first token of each request",
) -> LabFigure:
    """A mark for each request, seconds to its first token up, seconds of the load across; a side
    for each load. Refused requests are marked below the axis. Raises ValueError for no request."""
    answered = [each.ttft_s for many in loads.values() for each in many if each.ttft_s is not None]
    if not answered:
        raise ValueError("waits needs at least one request with a first token")
    factor, unit = theme.time_unit(max(answered))
    keys = theme.side_keys(list(loads))
    floor = -0.05 * factor * max(answered)
    figure = go.Figure()
    for name, many in loads.items():
        key = keys[name]
        served = [(each.due_s, each.ttft_s) for each in many if each.ttft_s is not None]
        drawn = sampled(served, theme.MAX_MARKS, lambda pair: pair[0], lambda pair: pair[1])
        label = theme.plot_text(name)
        figure.add_trace(
            go.Scatter(
                x=[at for at, _ in drawn], y=[factor * took for _, took in drawn],
                mode="markers", name=label, legendgroup=key,
                marker={"symbol": theme.SIDE_SYMBOLS[key], "size": 7, "opacity": 0.75,
                        "color": theme.SIDES[key]},
                hovertemplate="%{y:.3g} " + unit + " for the request due at %{x:.3g} s"
                f"<extra>{label}</extra>",
            )
        )  # fmt: skip
        refused = [each.due_s for each in many if each.ttft_s is None]
        if refused:
            figure.add_trace(
                go.Scatter(
                    x=refused, y=[floor] * len(refused), mode="markers", legendgroup=key,
                    name=f"{label}: refused",
                    marker={"symbol": "x-thin", "size": 8, "color": theme.SIDES[key],
                            "line": {"color": theme.SIDES[key], "width": 1.5}},
                    hovertemplate=f"refused at %{{x:.3g}} s<extra>{label}</extra>",
                )
            )  # fmt: skip
    last_s = max(each.due_s for many in loads.values() for each in many)
    figure.update_xaxes(
        title={"text": "time (s) at which the request was due"}, range=[0, 1.02 * last_s or 1.0]
    )
    figure.update_yaxes(title={"text": f"time to first token ({unit}, {kind})"})
    figure.update_layout(theme.layout(title, height=380))
    sentences = [_sentence(name, many, kind) for name, many in loads.items()]
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=" ".join(sentences),
        alt="Scatter of requests, time to first token over the time at which they were due. "
        + " ".join(sentences),
        table=[_row(name, many) for name, many in loads.items()],
    )


def _sentence(name: str, many: Sequence[Asked], kind: str) -> str:
    took = [each.ttft_s for each in many if each.ttft_s is not None]
    spread = distribution(took)
    begin = f"{name[:1].upper()}{name[1:]}: "
    if spread is None:
        return f"{begin}no request was answered."
    tenth = max(1, len(took) // 10)
    first, last = median(took[:tenth]), median(took[-tenth:])
    told = (
        f"{begin}median {theme.format_seconds(spread.p50)}, p99 {theme.format_seconds(spread.p99)}"
        f"; the first tenth of the answers {theme.format_seconds(first)}, the last "
        f"{theme.format_seconds(last)} ({kind})"
    )
    refused = len(many) - len(took)
    return told + (f"; {theme.format_count(refused, 'request')} refused." if refused else ".")


def _row(name: str, many: Sequence[Asked]) -> Row:
    took = [each.ttft_s for each in many if each.ttft_s is not None]
    spread = distribution(took)
    shown = {
        label: "" if spread is None else theme.format_seconds(value)
        for label, value in (
            ("median", spread.p50 if spread else 0.0),
            ("p99", spread.p99 if spread else 0.0),
            ("longest", spread.max if spread else 0.0),
        )
    }
    return {"load": name, "answered": len(took), "refused": len(many) - len(took)} | shown
