"""What cutting contexts into parts costs: bytes by the number of parts, and modelled time."""

from __future__ import annotations

from collections.abc import Sequence

from plotly.subplots import make_subplots

from minserve.bench.counts.splits import SplitCost, Splitting
from minserve.kernels.occupancy import GAIN, LEAST_KEYS
from widgets import theme
from widgets.figures.lab_figure import LabFigure

CACHED = theme.Look("keys, values, queries, result", "#0072B2")
PARTIAL = theme.Look("partial results, written and read", "#D55E00", "/")


def split_sweep(splitting: Splitting, costs: Sequence[SplitCost]) -> LabFigure:
    """Bytes as bars, modelled time as a dashed line, over the parts each context is cut into.

    Raises ValueError for no costs.
    """
    if not costs:
        raise ValueError("split_sweep needs the cost of at least one number of parts")
    x = [f"{cost.parts}" for cost in costs]
    scale, unit = theme.byte_unit(max(cost.bytes for cost in costs))
    factor, seconds = theme.time_unit(max(cost.modelled_s for cost in costs))
    figure = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.14,
        subplot_titles=[f"bytes of a layer ({unit}, counted)",
                        f"time of a layer ({seconds}, modelled)"],
    )  # fmt: skip
    theme.style_panels(figure)
    for look, sizes in (
        (CACHED, [cost.cached_bytes / scale for cost in costs]),
        (PARTIAL, [cost.parts_bytes / scale for cost in costs]),
    ):
        figure.add_bar(
            x=x, y=sizes, name=look.label, marker=look.marker(),
            hovertemplate=look.label + ": %{y:.3g} " + unit + "<extra>%{x} parts</extra>",
            row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=[cost.modelled_s * factor for cost in costs], mode="lines+markers", showlegend=False,
        line={"color": theme.SIDES["B"], "dash": theme.dash("modelled"), "width": 2},
        marker={"symbol": theme.SIDE_SYMBOLS["B"], "size": 8},
        customdata=[theme.format_count(cost.programs, "program") for cost in costs],
        hovertemplate="%{y:.3g} " + seconds + ", %{customdata}<extra>%{x} parts</extra>",
        row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title={"text": "parts of each context"}, type="category")
    figure.update_yaxes(rangemode="tozero")
    requests = theme.format_count(splitting.requests, "request")
    figure.update_layout(
        theme.layout(
            f"{requests} of {theme.format_count(splitting.context, 'token')}: parts of a context",
            panels=True, barmode="stack",
        )
    )  # fmt: skip
    best = min(costs, key=lambda cost: cost.modelled_s)
    first, last = costs[0], costs[-1]
    heads = splitting.mixer.heads
    return LabFigure(
        figure=figure,
        caption=(
            f"Bytes and programs counted; time modelled for {splitting.device.name} (data sheet: "
            f"{theme.format_bytes(splitting.device.memory_bytes_per_s or 0)}/s, "
            f"{splitting.device.processors} processors): memory-bound, every busy processor at "
            f"its share of the bandwidth, launches left out. One layer, {heads.num_heads} heads, "
            f"{heads.num_kv_heads} KV heads of {heads.head_dim}, {splitting.itemsize} bytes a "
            "number."
        ),
        takeaway=(
            f"From {first.parts} to {last.parts} parts the bytes grow "
            f"{theme.format_ratio(last.bytes / first.bytes)}; {best.parts} would be fastest "
            f"({theme.format_ratio(first.modelled_s / best.modelled_s)} faster than {first.parts}, "
            f"modelled), and the engine takes {splitting.chosen()}{_why(splitting, best)}."
        ),
        alt="Two panels over the parts each context is cut into. Left, stacked bars of bytes: "
        "what any kernel moves stays, partial results grow. Right, a dashed line of modelled time. "
        + " ".join(
            f"{cost.parts}: {theme.format_count(cost.programs, 'program')}, "
            f"{theme.format_bytes(cost.bytes)}, {theme.format_seconds(cost.modelled_s)}."
            for cost in costs
        ),
        table=[
            {
                "parts": cost.parts,
                "programs": cost.programs,
                "bytes any kernel moves": cost.cached_bytes,
                "bytes of partial results": cost.parts_bytes,
                "modelled µs": round(cost.modelled_s * 1e6, 3),
            }
            for cost in costs
        ],
    )  # fmt: skip


def _why(splitting: Splitting, best: SplitCost) -> str:
    """Why the engine takes another number of parts than the fastest one."""
    chosen = splitting.chosen()
    if chosen == best.parts:
        return ""
    if chosen == max(1, splitting.context // LEAST_KEYS):
        return f", because no part may have fewer than {LEAST_KEYS} keys"
    return (
        f", the fewest within {100 * (GAIN - 1):g} % of its own best estimate, which "
        "counts programs and leaves out bytes"
    )
