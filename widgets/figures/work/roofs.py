"""The roofline chart: arithmetic intensity against FLOP/s, under the limits of a device.

Williams et al., CACM 2009. Points are measured steps with counted work, or modelled ones; roofs
are measured ceilings or a data sheet's. Measures nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from minserve.hardware import Ceilings, DeviceSpec
from minserve.trace import StepTrace
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.log_axis import log_axis
from widgets.figures.sides import Runs, Side

Limits = Ceilings | DeviceSpec
_PLOT_PX = (theme.WIDTH - 110.0, 260.0)
"""The plot inside its axes, as exported."""


@dataclass(frozen=True)
class RooflinePoint:
    """Some work and how long it took."""

    label: str
    flops: float
    bytes: float
    seconds: float
    provenance: str = "measured"
    side: str = "A"
    """A key of `theme.SIDES`."""
    working_set_bytes: float = 0.0
    """Weights and cached keys and values read per step: chooses the bandwidth of the roof."""

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def flops_per_s(self) -> float:
        """Achieved arithmetic."""
        return self.flops / self.seconds if self.seconds else 0.0


def roofline_points(runs: Runs) -> list[RooflinePoint]:
    """Two points per run: its prefill steps and its decode steps, each summed.

    A step counts as prefill where most of its tokens were.
    """
    points = []
    for side in given.sides(runs):
        kinds: dict[str, list[StepTrace]] = {"prefill": [], "decode": []}
        for step in side.run.steps:
            kind = "prefill" if step.num_prefill_tokens > step.num_decode_tokens else "decode"
            kinds[kind].append(step)
        points += [_point(side, kind, steps) for kind, steps in kinds.items() if steps]
    return points


def _point(side: Side, kind: str, steps: Sequence[StepTrace]) -> RooflinePoint:
    works = [step.work for step in steps]
    return RooflinePoint(
        label=f"{side.name}: {kind}" if side.name else kind,
        flops=sum(work.flops for work in works),
        bytes=sum(work.bytes for work in works),
        # The time the arithmetic took; what surrounds it is the stage chart's to show.
        seconds=sum(step.stages.forward_s or step.duration_s for step in steps),
        provenance=side.run.header.provenance,
        side=side.key,
        working_set_bytes=sum(
            work.weight_bytes + work.kv_read_bytes + work.kv_write_bytes for work in works
        )
        / len(works),
    )


def roofline_chart(
    points: Sequence[RooflinePoint] | Runs,
    limits: Limits | Mapping[str, Limits],
    *,
    dtype: str = "float32",
    title: str = "What limits each kind of step",
    caption: str = "",
) -> LabFigure:
    """Points under roofs, both axes logarithmic.

    `points` are `RooflinePoint`s, or runs whose prefill and decode steps are summed. `limits` is
    this machine's `Ceilings`, a `DeviceSpec`, or several by name. Measured roofs are solid, data
    sheets' dashed.
    """
    shown: list[Side] = []
    if not isinstance(points, Sequence):
        shown = given.sides(points)
        caption = caption or given.caption(shown)
        points = roofline_points(points)
    points = [point for point in points if point.flops and point.bytes and point.seconds]
    named = limits if isinstance(limits, Mapping) else {_name(limits): limits}
    resident = max((point.working_set_bytes for point in points), default=0.0)
    roofs = {name: _roof(limit, dtype, resident) for name, limit in named.items()}
    figure = go.Figure()
    low, high = _span(points, list(roofs.values()))
    for place, (name, (peak, bandwidth)) in enumerate(roofs.items()):
        _draw_roof(figure, name, named[name], peak, bandwidth, low, high, place)
    rates = [point.flops_per_s for point in points]
    rates += [low * bandwidth for _, bandwidth in roofs.values()]
    rates += [peak for peak, _ in roofs.values()]
    unit, name = (1e12, "TFLOP/s") if max(rates, default=0.0) >= 1e13 else (1e9, "GFLOP/s")
    kinds = " and ".join(dict.fromkeys(point.provenance for point in points)) or "counted"
    figure.update_xaxes(
        log_axis((low, high), pad=0.0),
        title={"text": "arithmetic intensity (FLOP per byte moved, counted)"},
    )
    figure.update_yaxes(
        log_axis(rates, unit=unit, pad=0.1), showline=False,
        title={"text": theme.plot_text(f"arithmetic ({name}, {kinds})")},
    )  # fmt: skip
    for point, where in zip(points, _corners(points, figure.layout), strict=True):
        _draw_point(figure, point, where)
    figure.update_layout(theme.layout(title, height=380))
    rows = [_row(point, roofs) for point in points]
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=given.told(shown, _takeaway(points, roofs)),
        alt=_alt(points, roofs),
        table=rows,
    )


def _name(limits: Limits) -> str:
    if isinstance(limits, DeviceSpec):
        return f"{limits.name} (data sheet)"
    return f"this machine, {limits.threads} threads (measured)".replace("1 threads", "1 thread")


def _roof(limits: Limits, dtype: str, resident_bytes: float) -> tuple[float, float]:
    peak = limits.flops_per_s(dtype)
    if isinstance(limits, DeviceSpec):
        if limits.memory_bytes_per_s is None:
            raise ValueError(f"{limits.name}: no sourced figure for the memory bandwidth")
        return peak, limits.memory_bytes_per_s
    largest = limits.bandwidth[-1].working_set_bytes
    return peak, limits.bytes_per_s(resident_bytes or largest)


def _span(
    points: Sequence[RooflinePoint], roofs: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    seen = [point.intensity for point in points] + [peak / width for peak, width in roofs]
    return min(seen, default=1.0) / 4, max(seen, default=1.0) * 6


def _draw_roof(
    figure: go.Figure,
    name: str,
    limits: Limits,
    peak: float,
    bandwidth: float,
    low: float,
    high: float,
    place: int,
) -> None:
    ridge = peak / bandwidth
    name = theme.plot_text(name)
    kind = "modelled" if isinstance(limits, DeviceSpec) else "measured"
    figure.add_trace(
        go.Scatter(
            x=[low, ridge, high], y=[low * bandwidth, peak, peak], mode="lines", name=name,
            line={"color": theme.INK, "width": 2, "dash": theme.dash(kind)},
            hovertemplate=name + ": %{y:.3s}FLOP/s<extra></extra>",
        )
    )  # fmt: skip
    middle = math.sqrt(low * ridge)
    for x, y, text, anchor in (
        (high, peak, f"{theme.format_flops(peak)}/s", "top left"),
        (middle, middle * bandwidth, f"{theme.format_bytes(bandwidth)}/s    ", "top left"),
    ):
        figure.add_trace(
            go.Scatter(
                x=[x], y=[y], mode="text", text=[text], textposition=anchor, showlegend=False,
                textfont={"size": 12, "color": theme.INK}, hoverinfo="skip", cliponaxis=False,
            )
        )  # fmt: skip


Box = tuple[float, float, float, float]


def _corners(points: Sequence[RooflinePoint], layout: Any) -> list[str]:
    """Where each point's label stands: in the first corner where it lies on no mark or label."""
    (left, right), (low, high) = layout.xaxis.range, layout.yaxis.range
    at = [
        (
            (math.log10(point.intensity) - left) / (right - left) * _PLOT_PX[0],
            (math.log10(point.flops_per_s) - low) / (high - low) * _PLOT_PX[1],
        )
        for point in points
    ]
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in at]
    found = []
    for (x, y), point in zip(at, points, strict=True):
        size = 7.0 * len(point.label) + 14
        boxes: dict[str, Box] = {
            f"{up} {side}": (x + shift, y + rise, x + shift + size, y + rise + 17)
            for up, rise in (("bottom", -26), ("top", 9))
            for side, shift in (("right", 4.0), ("left", -4 - size))
        }
        free = [
            corner
            for corner, box in boxes.items()
            if box[0] >= 0 and box[2] <= _PLOT_PX[0] and not any(_meet(box, one) for one in taken)
        ]
        corner = free[0] if free else "bottom right"
        taken.append(boxes[corner])
        found.append(corner)
    return found


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_point(figure: go.Figure, point: RooflinePoint, where: str) -> None:
    colour = theme.SIDES.get(point.side, theme.INK)
    label = theme.plot_text(point.label)
    filled = point.provenance == "measured"
    symbol = theme.SIDE_SYMBOLS.get(point.side, "circle") + ("" if filled else "-open")
    figure.add_trace(
        go.Scatter(
            x=[point.intensity], y=[point.flops_per_s], mode="markers+text", showlegend=False,
            marker={"symbol": symbol, "size": 12, "color": colour,
                    "line": {"width": 2, "color": colour}},
            text=[f"  {label}  "], textfont={"color": colour, "size": 12},
            textposition=where, cliponaxis=False,
            hovertemplate=f"{label}: %{{y:.3s}}FLOP/s at %{{x:.3g}} FLOP/byte<extra></extra>",
        )
    )  # fmt: skip


def _share(point: RooflinePoint, roof: tuple[float, float]) -> tuple[float, str]:
    peak, bandwidth = roof
    bound = min(peak, point.intensity * bandwidth)
    return point.flops_per_s / bound, "compute" if bound == peak else "memory"


def _takeaway(points: Sequence[RooflinePoint], roofs: Mapping[str, tuple[float, float]]) -> str:
    if not points or not roofs:
        return "No work was counted."
    name, roof = next(iter(roofs.items()))
    told = []
    for point in points:
        share, binds = _share(point, roof)
        told.append(f"{point.label} reaches {theme.format_percent(share)} of the {binds} roof")
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]} ({name})."


def _alt(points: Sequence[RooflinePoint], roofs: Mapping[str, tuple[float, float]]) -> str:
    told = [
        f"{name}: {theme.format_flops(peak)}/s above {theme.format_rate(peak / width, 'FLOP/byte')}"
        f", below it {theme.format_bytes(width)}/s."
        for name, (peak, width) in roofs.items()
    ]
    told += [
        f"{point.label}: {theme.format_flops(point.flops_per_s)}/s at "
        f"{theme.format_rate(point.intensity, 'FLOP/byte')}."
        for point in points
    ]
    return "Roofline chart, both axes logarithmic. " + " ".join(told)


def _row(point: RooflinePoint, roofs: Mapping[str, tuple[float, float]]) -> Row:
    row: Row = {
        "what": point.label,
        "provenance": point.provenance,
        "GFLOP": round(point.flops / 1e9, 4),
        "MB moved": round(point.bytes / 1e6, 3),
        "ms": round(point.seconds * 1e3, 3),
        "FLOP/byte": round(point.intensity, 3),
        "GFLOP/s": round(point.flops_per_s / 1e9, 3),
    }
    for name, roof in roofs.items():
        share, binds = _share(point, roof)
        row[f"share of {name}"] = round(share, 4)
        row[f"binds on {name}"] = binds
    return row
