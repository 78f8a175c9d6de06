"""Online softmax, tile by tile: one row of attention, as a kernel computes it without ever holding
all of its scores (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).

Three things survive from tile to tile: the largest score so far, the sum of the exponentials, and
the weighted sum of the values. When the maximum moves, the other two shrink. Takes numbers, runs
nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets import theme
from widgets.figures.lab_figure import LabFigure, Row

SEEN = theme.Look("seen", "#44AA99")
NOW = theme.Look("in this tile", "#D55E00", "/")
AHEAD = theme.Look("not seen yet", theme.FAINT)
PARTIAL = theme.Look("so far", "#44AA99")
WHOLE = "whole softmax"


@dataclass(frozen=True)
class TileState:
    """What is kept when a tile has been seen."""

    end: int
    """Keys seen."""
    largest: float
    """Score: the running maximum."""
    total: float
    """Sum of `exp(score - largest)` over the keys seen."""
    output: tuple[float, ...]
    """Sum of `exp(score - largest) * value`, not yet divided by `total`."""
    shrink: float
    """What the sums of the tiles before were multiplied by; 0 in the first tile."""

    @property
    def normalised(self) -> list[float]:
        """The attention over the keys seen so far."""
        return [number / self.total for number in self.output]


def online_softmax(
    scores: Sequence[float], values: Sequence[Sequence[float]], tile: int
) -> list[TileState]:
    """The state after every tile of `tile` keys, in double precision.

    Raises ValueError for no keys, or a value too few or too many.
    """
    if not scores or len(scores) != len(values) or tile < 1:
        raise ValueError(
            f"online_softmax: {len(scores)} scores, {len(values)} values, tiles of {tile}: "
            "expected at least one score, as many values, and a tile of at least one key"
        )
    largest, total = -math.inf, 0.0
    output = [0.0] * len(values[0])
    states = []
    for start in range(0, len(scores), tile):
        mine = scores[start : start + tile]
        newest = max(largest, *mine)
        shrink = math.exp(largest - newest)
        weights = [math.exp(score - newest) for score in mine]
        total = total * shrink + sum(weights)
        output = [
            number * shrink
            + sum(w * value[d] for w, value in zip(weights, values[start:], strict=False))
            for d, number in enumerate(output)
        ]
        largest = newest
        states.append(TileState(start + len(mine), largest, total, tuple(output), shrink))
    return states


class OnlineSoftmax:
    """The figure after any of the tiles. `texts` are the keys' tokens, `caption` where the row is
    from."""

    def __init__(
        self,
        scores: Sequence[float],
        values: Sequence[Sequence[float]],
        tile: int,
        *,
        texts: Sequence[str] = (),
        caption: str = "",
    ) -> None:
        self.scores, self.tile = list(scores), tile
        self.states = online_softmax(scores, values, tile)
        self.texts = list(texts) or [f"{n}" for n in range(len(self.scores))]
        self._caption = caption

    def __len__(self) -> int:
        return len(self.states)

    def label(self, index: int) -> str:
        """A tile in words."""
        state = self.states[index]
        place = f"Tile {index + 1} of {len(self)}"
        if index == 0:
            return f"{place}: the maximum is {state.largest:.2f}, the sum {state.total:.2f}."
        before = self.states[index - 1]
        if state.largest == before.largest:
            return (
                f"{place}: the maximum stays {state.largest:.2f}; the sum grows from "
                f"{before.total:.2f} to {state.total:.2f}."
            )
        return (
            f"{place}: the maximum moves from {before.largest:.2f} to {state.largest:.2f}, so what "
            f"was summed before shrinks to {theme.format_percent(state.shrink)}; the sum is "
            f"{state.total:.2f}."
        )

    def figure(self, index: int = -1) -> LabFigure:
        """Scores, running sum and partial output when tile `index` has been seen; -1 is the end."""
        index %= len(self)
        state = self.states[index]
        figure = make_subplots(
            rows=2, cols=2, row_heights=[0.56, 0.44], column_widths=[0.36, 0.64],
            specs=[[{"colspan": 2}, None], [{}, {}]], vertical_spacing=0.3, horizontal_spacing=0.12,
            subplot_titles=[
                "scores of one query against every key, and the running maximum",
                "running sum",
                "output so far, and where it ends",
            ],
        )  # fmt: skip
        theme.style_panels(figure)
        self._draw_scores(figure, index)
        self._draw_sums(figure, index)
        self._draw_output(figure, state)
        figure.update_layout(
            theme.layout("Online softmax, tile by tile", height=470, panels=True, barmode="overlay",
                         bargap=0.15)
        )  # fmt: skip
        moved = sum(
            later.largest > earlier.largest for earlier, later in itertools.pairwise(self.states)
        )
        return LabFigure(
            figure=figure,
            caption=self._caption,
            takeaway=(
                f"{self.label(index)} Over the {theme.format_count(len(self.scores), 'key')} the "
                f"maximum moves {theme.format_count(moved, 'time')}; kept between tiles are "
                f"{theme.format_count(len(state.output) + 2)} numbers, and never all scores."
            ),
            alt=(
                "Three panels. Above, a bar per key with its score, tile by tile, under a "
                "staircase that is the running maximum. Below, the running sum of exponentials "
                "after each tile, and the output so far beside that of the whole softmax."
            ),
            table=[self._row(place) for place in range(len(self))],
        )

    def _draw_scores(self, figure: go.Figure, index: int) -> None:
        end, start = self.states[index].end, index * self.tile
        looks = [(SEEN, 0, start), (NOW, start, end), (AHEAD, end, len(self.scores))]
        for look, first, last in looks:
            if first < last:
                figure.add_bar(
                    x=list(range(first, last)), y=self.scores[first:last], name=look.label,
                    marker=look.marker(),
                    customdata=[theme.plot_text(text) for text in self.texts[first:last]],
                    hovertemplate="key %{x} “%{customdata}”: %{y:.2f}<extra></extra>",
                    row=1, col=1,
                )  # fmt: skip
        x: list[float] = []
        y: list[float] = []
        for place, each in enumerate(self.states[: index + 1]):
            x += [place * self.tile - 0.5, each.end - 0.5]
            y += [each.largest, each.largest]
        figure.add_scatter(
            x=x, y=y, mode="lines", name="running maximum", line={"color": theme.INK, "width": 2},
            hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
        figure.update_xaxes(
            title={"text": "key"}, range=[-0.5, len(self.scores) - 0.5], dtick=self.tile,
            showgrid=True, row=1, col=1,
        )  # fmt: skip
        low, high = min(self.scores), max(self.scores)
        pad = 0.08 * (high - low or 1)
        figure.update_yaxes(range=[min(0, low) - pad, max(0, high) + pad], row=1, col=1)

    def _draw_sums(self, figure: go.Figure, index: int) -> None:
        done = self.states[: index + 1]
        carried = [0.0, *(e.total * s.shrink for e, s in itertools.pairwise(done))]
        names = [f"{place + 1}" for place in range(len(done))]
        figure.add_bar(
            x=names, y=carried, marker=SEEN.marker(), showlegend=False, base=0,
            hovertemplate="kept from the tiles before: %{y:.3f}<extra></extra>", row=2, col=1,
        )  # fmt: skip
        figure.add_bar(
            x=names, y=[each.total - kept for each, kept in zip(done, carried, strict=True)],
            base=carried, marker=NOW.marker(), showlegend=False,
            hovertemplate="added by the tile: %{y:.3f}<extra></extra>", row=2, col=1,
        )  # fmt: skip
        figure.update_xaxes(
            title={"text": "tile"}, range=[-0.6, len(self) - 0.4], type="category",
            categoryorder="array", categoryarray=[f"{n + 1}" for n in range(len(self))],
            row=2, col=1,
        )  # fmt: skip
        top = max(each.total for each in self.states)
        figure.update_yaxes(range=[0, 1.1 * top], row=2, col=1)

    def _draw_output(self, figure: go.Figure, state: TileState) -> None:
        whole = self.states[-1].normalised
        places = list(range(len(whole)))
        figure.add_bar(
            x=places, y=state.normalised, name=PARTIAL.label, marker=PARTIAL.marker(),
            showlegend=False, hovertemplate="number %{x}: %{y:.3f}<extra>so far</extra>",
            row=2, col=2,
        )  # fmt: skip
        figure.add_scatter(
            x=places, y=whole, mode="markers", name=WHOLE,
            marker={"symbol": "line-ew-open", "size": 9, "color": theme.INK, "line": {"width": 2}},
            hovertemplate="number %{x}: %{y:.3f}<extra>at the end</extra>", row=2, col=2,
        )  # fmt: skip
        reach = max(abs(n) for each in self.states for n in each.normalised) * 1.1 or 1.0
        figure.update_xaxes(title={"text": "number of the head"}, row=2, col=2)
        figure.update_yaxes(range=[-reach, reach], row=2, col=2)

    def _row(self, place: int) -> Row:
        state = self.states[place]
        whole = self.states[-1].normalised
        off = max(abs(a - b) for a, b in zip(state.normalised, whole, strict=True))
        return {
            "tile": place + 1,
            "keys seen": state.end,
            "running maximum": round(state.largest, 4),
            "shrunk to": round(state.shrink, 6),
            "running sum": round(state.total, 4),
            "farthest from the end": round(off, 4),
        }
