"""The lower rows of a comparison's strips: KV memory over time, and the price as counted bars.

Also what they share with the strip above them: where a run ends, and labels moved apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from minserve.trace import StepTrace
from minserve.trace.totals import RunTotals
from widgets import theme
from widgets.figures.sampling import thinned
from widgets.figures.sides import Side
from widgets.metrics import allocated_bytes, keeps


@dataclass(frozen=True)
class Price:
    """Something a side may pay with, over its whole run."""

    label: str
    read: Callable[[RunTotals], float]
    show: Callable[[float], str] = lambda value: theme.format_count(round(value))


PRICES = (
    Price("requests refused", lambda t: t.refused),
    Price("tokens computed again", lambda t: t.recomputed_tokens),
    Price("requests preempted", lambda t: t.preemptions),
    Price("padded rows", lambda t: t.padded_rows),
    Price("rows computed in vain", lambda t: t.discarded_tokens),
    Price("pages copied", lambda t: t.copied_blocks),
    Price("pages moved to or from the host", lambda t: t.swapped_out_blocks + t.swapped_in_blocks),
    Price("host memory, peak", lambda t: t.peak_host_bytes, theme.format_bytes),
    Price("graphs compiled", lambda t: t.compiled_graphs),
)


def end_of(side: Side) -> float:
    """Seconds from the run's beginning to the end of its last step."""
    return max((step.end_s - side.origin_s for step in side.run.steps[-1:]), default=0.0)


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights between 0 and 1, moved as little as it takes to be `least` apart, in their order."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    found = [min(max(height, 0.06), 1.0) for height in heights]
    for below, above in itertools.pairwise(order):
        found[above] = max(found[above], found[below] + least)
    if order and found[order[-1]] > 1.0:
        found[order[-1]] = 1.0
    for below, above in itertools.pairwise(order[::-1]):
        found[above] = min(found[above], found[below] - least)
    return found


def draw_memory(figure: go.Figure, own: Sequence[Side], factor: float) -> int:
    """Pages that requests own, tokens in them, and what lies beside: kept for hits, on the host.

    Returns how many letters its longest label has.
    """
    highest = max(
        (
            max(allocated_bytes(s.run, step), *_beside(step).values())
            for s in own
            for step in s.run.steps
        ),
        default=0,
    )
    divisor, unit = theme.byte_unit(highest)
    labels: list[tuple[Side, float, str]] = []
    for side in own:
        steps = thinned(side.run.steps, theme.MAX_MARKS // 2, key=lambda s: s.kv_bytes_allocated)
        if not steps:
            continue
        x = [factor * (step.start_s - side.origin_s) for step in steps]
        x.append(factor * end_of(side))
        owned = [allocated_bytes(side.run, step) / divisor for step in steps]
        used = [step.kv_bytes_used / divisor for step in steps]
        filled = [min(pair) for pair in zip(used, owned, strict=True)]
        shape = side.pattern
        for name, y, width, opacity in (("used", filled, 0.0, 0.3), ("allocated", owned, 2.0, 0.0)):
            figure.add_trace(
                go.Scatter(
                    x=x, y=y + y[-1:], name=f"{side.label} {name}", showlegend=False,
                    mode="lines" if opacity else "lines+markers", legendgroup=side.key,
                    marker={"symbol": side.symbol, "size": 6, "maxdisplayed": 8},
                    line={"color": side.colour, "width": width, "shape": "hv"},
                    fill="tozeroy" if opacity else None,
                    fillcolor=theme.translucent(side.colour, opacity) if opacity else None,
                    fillpattern={"shape": shape, "size": 8, "solidity": 0.2, "fillmode": "overlay",
                                 "fgcolor": side.colour} if opacity and shape else None,
                    hovertemplate=f"{name} %{{y:.3g}} {unit}<extra>{side.label}</extra>",
                ),
                row=2, col=1,
            )  # fmt: skip
        labels.append((side, max(owned), peak(side)))
        for name in _beside(steps[0]):
            y = [_beside(step)[name] / divisor for step in steps]
            if max(y) <= 0:
                continue
            figure.add_trace(
                go.Scatter(
                    x=x, y=y + y[-1:], mode="lines+markers", showlegend=False,
                    legendgroup=side.key, name=f"{side.label} {name}",
                    line={"color": side.colour, "width": 1, "shape": "hv"},
                    marker={"symbol": side.symbol, "size": 4, "maxdisplayed": 12},
                    hovertemplate=f"{name} %{{y:.3g}} {unit}<extra>{side.label}</extra>",
                ),
                row=2, col=1,
            )  # fmt: skip
            labels.append((side, max(y), f"{theme.format_bytes(max(y) * divisor)} {name}"))
    figure.update_yaxes(
        range=[0, 1.1 * highest / divisor or 1.0], title={"text": unit}, showline=False,
        row=2, col=1,
    )  # fmt: skip
    _label_memory(figure, labels, 1.1 * highest / divisor or 1.0)
    return max((len(f"{side.label}: {text}") for side, _, text in labels), default=0)


def peak(side: Side) -> str:
    """Most KV memory allocated; a run without a cache keeps no page beyond its step."""
    if not keeps(side.run):
        return "0 bytes kept"
    return f"{theme.format_bytes(side.run.totals.peak_kv_bytes_allocated)} allocated"


def _beside(step: StepTrace) -> dict[str, float]:
    """Bytes that no running request owns, by where they lie."""
    page = step.kv_bytes_reserved / step.blocks_total if step.blocks_total else 0.0
    return {
        "kept for hits": step.blocks.cached_blocks * page,
        "in host memory": float(step.blocks.host_bytes),
    }


def _label_memory(figure: go.Figure, labels: Sequence[tuple[Side, float, str]], top: float) -> None:
    heights = apart([value / top for _, value, _ in labels], 0.15)
    for (side, _, text), height in zip(labels, heights, strict=True):
        figure.add_annotation(
            text=f"{side.label}: {theme.plot_text(text)}" if side.name else theme.plot_text(text),
            showarrow=False, align="left", x=1.0, xref="paper", xanchor="left", xshift=8,
            y=height, yref="y2 domain", yanchor="middle",
            font={"size": 11, "color": side.colour},
        )  # fmt: skip


def draw_prices(figure: go.Figure, own: Sequence[Side], paid: Sequence[Price]) -> None:
    """Bars as long as their share of the larger side's: every price has a unit of its own."""
    labels = [each.label for each in paid]
    most = [max(each.read(side.run.totals) for side in own) for each in paid]
    for side in own:
        values = [each.read(side.run.totals) for each in paid]
        figure.add_trace(
            go.Bar(
                y=labels, x=[value / top for value, top in zip(values, most, strict=True)],
                orientation="h", name=side.label or "the run", legendgroup=side.key,
                showlegend=False,
                marker=theme.Look(side.name, side.colour, side.pattern).marker(),
                # Beside the bars: names in the margin would make all strips narrower.
                text=[f"{each.label}: {each.show(value)} {f'({side.label})' * bool(side.name)}"
                      for each, value in zip(paid, values, strict=True)],
                textposition="outside", cliponaxis=False, textfont={"size": 12},
                hovertemplate="%{text}<extra></extra>",
            ),
            row=3, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[0, 1.5], visible=False, row=3, col=1)
    figure.update_yaxes(autorange="reversed", visible=False, row=3, col=1)
