"""What a step launches and moves, by kind of operator: a bar per way of doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minserve.kernels.counts.launches import Launch, Total
from widgets import theme
from widgets.figures.lab_figure import LabFigure

KINDS: dict[str, tuple[theme.Look, tuple[str, ...]]] = {
    "products": (theme.Look("matrix products", "#5B5BD6"), ("linear",)),
    "attention": (theme.Look("attention", "#88CCEE", "/"), ("attention",)),
    "norms": (
        theme.Look("norms and residuals", "#CC6677", "."),
        ("rms_norm", "rms_norm_rows", "add_rms_norm"),
    ),
    "store": (
        theme.Look("rotary embedding, store", "#DDCC77", "x"),
        ("rotary_", "store_kv", "rotary_store_"),
    ),
    "activation": (theme.Look("activation", "#AA4499", "\\"), ("silu_and_mul", "gelu_and_mul")),
    "other": (theme.Look("everything else", theme.FAINT), ()),
}
"""Kind -> its look, and the operators of `Ops` it holds; `other` is the rest."""


def by_kind(launches: Sequence[Launch]) -> dict[str, Total]:
    """Kind -> its launches, in the order of `KINDS`, those without any left out."""
    known = {name: kind for kind, (_, names) in KINDS.items() for name in names}
    sorted_out: dict[str, list[Launch]] = {kind: [] for kind in KINDS}
    for launch in launches:
        sorted_out[known.get(launch.operator, "other")].append(launch)
    return {kind: Total.of(found) for kind, found in sorted_out.items() if found}


def launch_bars(
    ways: Mapping[str, Sequence[Launch]],
    *,
    title: str = "One step, launch by launch",
    caption: str = "",
    products: bool = False,
) -> LabFigure:
    """Launches, and bytes moved, of one step done in several ways.

    Bytes are those between the matrix products, whose weights would hide the rest; `products`
    shows them too. Raises ValueError for no way.
    """
    if not ways:
        raise ValueError("launch_bars needs at least one way: {'torch': launches}")
    found = {name: by_kind(launches) for name, launches in ways.items()}
    left = {
        name: {kind: total for kind, total in kinds.items() if products or kind != "products"}
        for name, kinds in found.items()
    }
    moved = {name: sum(t.moved.total for t in kinds.values()) for name, kinds in left.items()}
    scale, unit = theme.byte_unit(max(moved.values()))
    what = "bytes moved" if products else "bytes moved outside the matrix products"
    figure = make_subplots(
        rows=2, cols=1, vertical_spacing=0.4,
        subplot_titles=["launches", what],
    )  # fmt: skip
    theme.style_panels(figure)
    names = list(ways)
    for kind, (look, _) in KINDS.items():
        if any(kind in kinds for kinds in found.values()):
            counts = [found[n][kind].launches if kind in found[n] else 0 for n in names]
            sizes = [left[n][kind].moved.total / scale if kind in left[n] else 0 for n in names]
            _bar(figure, 1, names, counts, look, max(len(each) for each in ways.values()))
            _bar(figure, 2, names, sizes, look, max(moved.values()) / scale, legend=False)
    figure.update_xaxes(title={"text": "launches (counted)"}, tickformat=",", row=1, col=1)
    figure.update_yaxes(autorange="reversed", showline=False, showgrid=False)
    figure.update_xaxes(
        title={"text": f"moved ({unit}, counted)"}, rangemode="tozero", row=2, col=1
    )
    figure.update_layout(
        theme.layout(title, height=300 + 64 * len(names), panels=True, barmode="stack", bargap=0.3,
                     margin={"t": 118}, legend={"traceorder": "normal"})
    )  # fmt: skip
    told = "; ".join(
        f"{name}: {theme.format_count(len(ways[name]), 'launch', 'launches')}, "
        f"{theme.format_bytes(moved[name])}"
        for name in names
    )
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=f"{told[:1].upper()}{told[1:]} {what.removeprefix('bytes ')}"
        + _compared({name: (len(ways[name]), moved[name]) for name in names}),
        alt="Stacked bars by kind of operator, launches above and bytes below. "
        + " ".join(
            f"{name}: "
            + ", ".join(
                f"{KINDS[kind][0].label} {theme.format_count(total.launches)} launches and "
                f"{theme.format_bytes(total.moved.total)}"
                for kind, total in kinds.items()
            )
            + "."
            for name, kinds in found.items()
        ),
        table=[
            {
                "way": name,
                "operators": KINDS[kind][0].label,
                "launches": total.launches,
                "bytes read": total.moved.read,
                "bytes written": total.moved.written,
            }
            for name, kinds in found.items()
            for kind, total in kinds.items()
        ],
    )


def _compared(counts: Mapping[str, tuple[int, int]]) -> str:
    """The end of the sentence: of two ways, how many times fewer launches and bytes."""
    if len(counts) != 2 or not all(all(each) for each in counts.values()):
        return "."
    (_, before), (name, after) = counts.items()
    told = []
    for what, first, second in zip(("launches", "bytes"), before, after, strict=True):
        if first != second:
            factor = theme.format_ratio(max(first, second) / min(first, second))
            told.append(f"{factor} {'fewer' if second < first else 'more'} {what}")
    return f": {' and '.join(told)} with {name}." if told else "."


def _bar(
    figure: go.Figure,
    row: int,
    names: Sequence[str],
    sizes: Sequence[float],
    look: theme.Look,
    whole: float,
    legend: bool = True,
) -> None:
    figure.add_trace(
        go.Bar(
            x=list(sizes), y=[theme.plot_text(name) for name in names], orientation="h",
            name=look.label, marker=look.marker(),
            showlegend=legend, legendgroup=look.label,
            text=[_number(size) if size >= 0.06 * whole else "" for size in sizes],
            textposition="inside", insidetextanchor="middle", textangle=0, constraintext="none",
            textfont={"size": 12, "color": theme.on(look.colour)},
            hovertemplate=look.label + ": %{x:.4g}<extra>%{y}</extra>",
        ),
        row=row,
        col=1,
    )  # fmt: skip


def _number(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"
