"""The figure of a sweep: a line with its spread, a modelled one dashed, and where it turns.

Of two sides the gain is drawn, above 1 where the second one wins; the threshold that was asked
about and the place where it is passed are marked, and the regions say who wins. A pure function of
the result. Knows nothing about runs or widgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures.lab_figure import LabFigure
from widgets.figures.log_axis import even_ticks, log_ticks
from widgets.panels.sweeps.result import SweepResult
from widgets.provenance import Provenance

_FACTORS = (10.0, 100.0, 1000.0, 2.0, 5.0, 20.0, 50.0, 200.0, 1.5, 3.0, 1.2, 1.1, 1.05, 1.02)
"""Ticks of a gain, the roundest first."""
_TICK_SHARE = 0.08
"""Least distance of two ticks, as a share of the axis."""
_WIDE = 16
"""Values of a knob that span a larger factor stand on a logarithmic axis."""


def sweep_figure(result: SweepResult, *, complete: bool = True) -> LabFigure:
    """Draw a sweep; one that is not `complete` quotes nothing yet.

    Raises ValueError where nothing was measured.
    """
    if not result.points:
        raise ValueError("a sweep's figure needs at least one measured value")
    values = sorted(result.points, key=_order)
    kinds = {header.provenance for header in result.headers.values()}
    # A count is the same on the virtual clock: only a time is modelled there.
    counted = result.exact and (result.metric.counted or kinds == {"measured"})
    kind = "counted" if counted else next(iter(kinds), "measured")
    # Counts of one side are bars, and bars stand side by side whatever their distance.
    bars = kind == "counted" and not result.is_ratio
    numeric = all(_is_number(value) for value in values) and not bars
    x: list[Any] = values if numeric else [theme.plot_text(str(value)) for value in values]
    height = result.gain if result.is_ratio else float
    figure = go.Figure()
    _draw_points(figure, result, values, x, kind, height, bars=bars)
    if result.modelled:
        _draw_modelled(figure, result, numeric, height)
    # Bars show counts from zero; where a gain is drawn, 1 must be in sight.
    if result.is_ratio:
        _mark_gains(figure, result, x, numeric, complete)
    unit = f" ({result.unit})" if result.unit else ""
    of_label = result.metric.label
    figure.update_layout(
        theme.layout(of_label[:1].upper() + of_label[1:], margin={"r": 24}, title_font_size=14)
    )
    figure.update_xaxes(title_text=theme.plot_text(f"{result.label}{unit}"))
    what = f"“{result.sides[1]}” against “{result.sides[0]}”" if result.is_ratio else kind
    figure.update_yaxes(title_text=theme.plot_text(what))
    if numeric and min(values) > 0 and max(values) / min(values) >= _WIDE:
        figure.update_xaxes(type="log", tickvals=x, ticktext=[f"{value:,g}" for value in values])
    if not result.is_ratio and not bars:
        _fit_axis(figure, result)
    caption = Provenance.of(result.headers).caption if result.headers else ""
    if caption and counted and "modelled" in kinds:
        caption = f"Counted, in runs on modelled time. {caption}"
    return LabFigure(
        figure=figure,
        caption=caption,
        takeaway=_takeaway(result, values) if complete else "",
        alt=_alt(result, values),
        table=[_row(result, value) for value in values],
    )


def _of(result: SweepResult) -> str:
    if not result.is_ratio:
        return result.metric.label
    return f"{result.metric.label}: “{result.sides[1]}” against “{result.sides[0]}”"


def _draw_points(
    figure: go.Figure,
    result: SweepResult,
    values: list[Any],
    x: list[Any],
    kind: str,
    height: Callable[[float], float],
    *,
    bars: bool,
) -> None:
    side = "B" if result.is_ratio else "A"
    colour = theme.SIDES[side]
    spreads = [result.points[value] for value in values]
    if any(spread.min != spread.max for spread in spreads):
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[height(spread.max) for spread in spreads]
            + [height(spread.min) for spread in spreads[::-1]],
            fill="toself", fillcolor=theme.translucent(colour, 0.18), line={"width": 0},
            mode="lines", name="smallest to largest round", hoverinfo="skip",
        )  # fmt: skip
    medians = [height(spread.median) for spread in spreads]
    words = [theme.plot_text(result.words(spread.median)) for spread in spreads]
    if bars:
        look = theme.Look(kind, colour, theme.SIDE_PATTERNS[side])
        figure.add_bar(x=x, y=medians, name=kind, marker=look.marker(), text=words)
        return
    figure.add_scatter(
        x=x, y=medians, mode="lines+markers", name=theme.plot_text(kind), customdata=words,
        line={"color": colour, "dash": theme.dash(kind), "width": 2},
        marker={"symbol": theme.SIDE_SYMBOLS[side], "size": 8},
        hovertemplate="%{x}: %{customdata}<extra></extra>",
    )  # fmt: skip


def _draw_modelled(
    figure: go.Figure, result: SweepResult, numeric: bool, height: Callable[[float], float]
) -> None:
    modelled = sorted(result.modelled, key=_order)
    figure.add_scatter(
        x=modelled if numeric else [theme.plot_text(str(value)) for value in modelled],
        y=[height(result.modelled[value]) for value in modelled],
        mode="lines", name="modelled",
        line={"color": theme.SIDES["B" if result.is_ratio else "A"],
              "dash": theme.dash("modelled"), "width": 2},
    )  # fmt: skip


def _mark_gains(
    figure: go.Figure, result: SweepResult, x: list[Any], numeric: bool, complete: bool
) -> None:
    """A logarithmic axis in words, the threshold, who wins where, and the crossover."""
    ends = [
        result.gain(end) for spread in result.points.values() for end in (spread.min, spread.max)
    ]
    ends += [result.gain(number) for number in result.modelled.values()]
    low = min(*ends, result.threshold, 1.0) / 1.12
    high = max(*ends, result.threshold, 1.0) * 1.12
    ticks = _gain_ticks(low, high)
    figure.update_yaxes(
        type="log", range=[math.log10(low), math.log10(high)], tickvals=ticks,
        ticktext=["equal" if tick == 1 else result.words(result.gain(tick)) for tick in ticks],
    )  # fmt: skip
    first, second = (theme.plot_text(name) for name in result.sides)
    ordered = sorted(result.points, key=_order)
    gains = [result.gains[ordered[0]], result.gains[ordered[-1]]]
    for bottom, top, side, name in (
        (result.threshold, high, "B", second), (low, result.threshold, "A", first)
    ):  # fmt: skip
        figure.add_shape(
            type="rect", x0=0, x1=1, xref="x domain", y0=bottom, y1=top, layer="below",
            line={"width": 0}, fillcolor=theme.translucent(theme.SIDES[side], 0.09),
        )  # fmt: skip
        if math.log(top / bottom) < 0.16 * math.log(high / low):
            continue  # no room for words
        above = side == "B"
        text = f"“{name}” wins"
        if result.threshold != 1:
            text = f"gain {'above' if above else 'below'} {result.threshold:g}x"
        # In the corner that the line leaves free.
        left, right = (abs(math.log((top if above else bottom) / gain)) for gain in gains)
        at_right = right >= left
        figure.add_annotation(
            text=text, showarrow=False, x=0.99 if at_right else 0.01, xref="x domain",
            xanchor="right" if at_right else "left",
            y=math.log10(top if above else bottom), yanchor="top" if above else "bottom",
            font={"size": 12, "color": theme.SIDES[side]},
        )  # fmt: skip
    figure.add_hline(y=result.threshold, line={"color": theme.INK, "width": 1.5})
    if result.threshold != 1:
        figure.add_hline(y=1.0, line={"color": theme.INK, "width": 0.7})
    place = result.crossover
    if complete and numeric and place is not None:
        # On the side that the line leaves free, and inside the figure.
        after = next((value for value in ordered if value > place), ordered[-1])
        rises = result.gains[after] > result.threshold
        beside = "bottom right" if rises else "top right"
        if place == ordered[-1]:
            rises = result.gains[ordered[-2]] < result.threshold
            beside = "top left" if rises else "bottom left"
        figure.add_scatter(
            x=[place], y=[result.threshold], mode="markers+text", name="crossover",
            text=[f" {_short(place)} "], textposition=beside, textfont={"size": 13},
            cliponaxis=False,
            marker={"symbol": "x", "size": 11, "color": theme.INK}, showlegend=True,
            hovertemplate=f"crossover near {_short(place)}<extra></extra>",
        )  # fmt: skip


def _gain_ticks(low: float, high: float) -> list[float]:
    """Round factors on both sides of 1, as far apart as their words are high."""
    apart = _TICK_SHARE * math.log(high / low)
    chosen = [1.0]
    for factor in _FACTORS:
        for each in (factor, 1 / factor):
            inside = low <= each <= high
            if inside and all(abs(math.log(each / other)) >= apart for other in chosen):
                chosen.append(each)
    return sorted(chosen)


def _fit_axis(figure: go.Figure, result: SweepResult) -> None:
    """One side's values from zero, with their unit; on a logarithmic axis where they span much."""
    numbers = [end for spread in result.points.values() for end in (spread.min, spread.max)]
    numbers += list(result.modelled.values())
    low, high = min(numbers), max(numbers)
    if low > 0 and high / low > 20:
        figure.update_yaxes(type="log")
        ticks, _ = log_ticks(low, high)
    elif low >= 0 and high > 0:
        figure.update_yaxes(rangemode="tozero")
        ticks = even_ticks(0.0, high)
    else:
        return
    words = [theme.plot_text(result.words(tick)) for tick in ticks]
    figure.update_yaxes(tickvals=ticks, ticktext=words)


def _short(place: float) -> str:
    return f"{float(f'{place:.3g}'):,g}"


def _row(result: SweepResult, value: Any) -> dict[str, Any]:
    spread = result.points[value]
    row = {result.label: value, "median": result.words(spread.median)}
    row |= {"smallest": result.words(spread.min), "largest": result.words(spread.max)}
    row["rounds"] = len(spread.values)
    if value in result.modelled:
        row["modelled"] = result.words(result.modelled[value])
    return row


def _takeaway(result: SweepResult, values: list[Any]) -> str:
    said = [result.words(result.points[value].median) for value in (values[0], values[-1])]
    text = f"{_of(result)}: {said[0]} at {result.label} = {values[0]}, {said[1]} at {values[-1]}"
    text = text[:1].upper() + text[1:]
    if not result.is_ratio:
        return f"{text}."
    place = result.crossover
    asked = theme.format_ratio(result.threshold)
    if place is not None:
        equal = "both sides are equal" if result.threshold == 1 else f"the gain passes {asked}"
        where = "at" if place in result.points else "near"
        return f"{text}; {equal} {where} {_short(place)}."
    wins = all(gain > result.threshold for gain in result.gains.values())
    loses = all(gain < result.threshold for gain in result.gains.values())
    if result.threshold == 1 and (wins or loses):
        return f"{text}; “{result.sides[1 if wins else 0]}” wins everywhere between."
    if wins or loses:
        return f"{text}; the gain stays {'above' if wins else 'below'} {asked} everywhere between."
    return f"{text}."


def _alt(result: SweepResult, values: list[Any]) -> str:
    points: Mapping[Any, Any] = result.points
    parts = [
        f"{value}: {result.words(points[value].median)} ({result.words(points[value].min)} to "
        f"{result.words(points[value].max)})"
        for value in values
    ]
    return f"{_of(result)}, over {result.label}. " + "; ".join(parts) + "."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, Any]:
    return (False, value) if _is_number(value) else (True, str(value))
