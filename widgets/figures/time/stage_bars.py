"""Where the time of a run went: shares of the engine's stages."""

from __future__ import annotations

from typing import Literal

import plotly.graph_objects as go

from minserve.trace import TraceSnapshot
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure, Row
from widgets.figures.sides import Runs, Side


def stage_seconds(run: TraceSnapshot) -> dict[str, float]:
    """Stage -> seconds over the whole run, by the keys of `theme.STAGES`; they add up to it."""
    totals = run.totals
    stages = {
        "schedule": totals.schedule_s,
        "prepare": totals.prepare_s,
        "forward": max(0.0, totals.forward_s - totals.attention_s),
        "attention": totals.attention_s,
        "sample": totals.sample_s,
        "commit": totals.commit_s,
    }
    return stages | {"idle": max(0.0, totals.duration_s - sum(stages.values()))}


def stage_shares(
    runs: Runs,
    *,
    per: Literal["share", "step"] = "share",
    title: str = "Where the time goes",
    workload: str = "",
) -> LabFigure:
    """A stacked bar per side: each stage's share of the run, or its mean time per step."""
    if per not in ("share", "step"):
        raise ValueError(f"stage_shares(per={per!r}): expected 'share' or 'step'")
    shown = given.sides(runs)
    seconds = {side.name: stage_seconds(side.run) for side in shown}
    whole = {name: sum(stages.values()) or 1.0 for name, stages in seconds.items()}
    means = {side.name: whole[side.name] / max(1, side.run.totals.steps) for side in shown}
    factor, unit = theme.time_unit(max(means.values()))
    figure = go.Figure()
    names = [side.label or "the run" for side in shown]
    for stage, look in theme.STAGES.items():
        shares = [seconds[side.name][stage] / whole[side.name] for side in shown]
        if max(shares) <= 0:
            continue
        sizes = shares
        if per == "step":
            sizes = [share * means[s.name] * factor for share, s in zip(shares, shown, strict=True)]
        # Share of the axis a segment takes: labels only where they fit.
        axis = 1.0 if per == "share" else max(means.values()) * factor
        figure.add_trace(
            go.Bar(
                x=sizes, y=names, orientation="h", name=look.label, marker=look.marker(),
                text=[theme.format_percent(share) if size / axis >= 0.055 else ""
                      for share, size in zip(shares, sizes, strict=True)],
                textposition="inside", insidetextanchor="middle", textangle=0,
                constraintext="none", textfont={"size": 12, "color": theme.on(look.colour)},
                customdata=[theme.format_seconds(seconds[side.name][stage]) for side in shown],
                hovertemplate=look.label + ": %{customdata}<extra>%{y}</extra>",
            )
        )  # fmt: skip
    if per == "share":
        figure.update_xaxes(
            range=[0, 1], tickformat=".0%", title=given.axis_title("share of the run", "%", shown)
        )
    else:
        figure.update_xaxes(
            title=given.axis_title("mean time per step", unit, shown), rangemode="tozero"
        )
    figure.update_yaxes(autorange="reversed", showline=False, showgrid=False)
    figure.update_layout(
        theme.layout(
            title,
            height=206 + 52 * len(shown),
            margin={"t": 104},  # seven stages take three rows of legend
            barmode="stack",
            bargap=0.3,
            legend={"traceorder": "normal"},
        )
    )
    return LabFigure(
        figure=figure,
        caption=given.caption(shown, workload),
        takeaway=given.told(shown, _takeaway(shown, seconds, whole)),
        alt="Stacked bars of the engine's stages. "
        + " ".join(_alt(side, seconds[side.name], whole[side.name]) for side in shown),
        table=[_row(side, seconds[side.name], whole[side.name], stage)
               for side in shown for stage in theme.STAGES],
    )  # fmt: skip


def _takeaway(
    shown: list[Side], seconds: dict[str, dict[str, float]], whole: dict[str, float]
) -> str:
    told = []
    for side in shown:
        ranked = sorted(seconds[side.name].items(), key=lambda item: -item[1])[:2]
        words = " and ".join(
            f"{theme.format_percent(value / whole[side.name])} {theme.STAGES[stage].label}"
            for stage, value in ranked
            if value > 0
        )
        told.append(f"{side.called('the run')}: {words or 'no time passed'}")
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}."


def _alt(side: Side, stages: dict[str, float], whole: float) -> str:
    words = ", ".join(
        f"{theme.STAGES[stage].label} {theme.format_percent(value / whole)}"
        for stage, value in stages.items()
        if value > 0
    )
    return f"{side.called('The run')}: {words or 'no time passed'}."


def _row(side: Side, stages: dict[str, float], whole: float, stage: str) -> Row:
    name: Row = {"side": side.name} if side.name else {}
    return name | {
        "stage": theme.STAGES[stage].label,
        "ms": round(stages[stage] * 1e3, 3),
        "share": round(stages[stage] / whole, 4),
    }
