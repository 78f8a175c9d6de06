"""The growing radix tree: which prefixes the cache holds, who shares them, what was evicted.

Position runs from left to right, a bar is a run of tokens, its height and its number say how many
requests begin with it. Places are fixed for the whole growth, so that Replay changes numbers and
texts, never traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.lab_figure import LabFigure
from widgets.figures.memory.tree_growth import Run, TreeGrowth, TreeSnapshot, Union
from widgets.pieces import Texts, pieces

LOOKS = {
    "owned": theme.Look("held by a request", "#44AA99"),
    "cached": theme.Look("cached, held by no request", "#DDCC77", ".", solidity=0.12),
    "evicted": theme.Look("was here, evicted", "rgba(128, 128, 128, 0.18)", "x"),
}
NODE_END = "end of a node"

_ROW_PX = 27
_CHAR_PX = 6.9
_INNER_PX = theme.WIDTH - 90


@dataclass(frozen=True)
class _Bar:
    """One run at one moment, in tokens from the beginning."""

    run: Run
    start: int
    owned: int
    cached: int
    evicted: int
    """Each part begins where the one before it ends."""
    readers: int

    @property
    def held(self) -> int:
        """Tokens that the index has."""
        return self.owned + self.cached


class RadixTree:
    """The figure of a growth at any of its moments. `tokenizer` writes the text on the bars,
    `prompts` (request name -> token ids) say who shares what."""

    def __init__(
        self,
        growth: TreeGrowth,
        tokenizer: Texts | None,
        prompts: Mapping[str, Sequence[int]],
    ) -> None:
        self.growth = growth
        self.snapshots: Sequence[TreeSnapshot] = tuple(growth.snapshots)
        self._union = Union(self.snapshots)
        self._prompts = prompts
        runs = self._union.runs
        self._texts = ["".join(pieces(tokenizer, run.tokens)) for run in runs]
        self._span = max((run.spots[-1].end for run in runs), default=1)

    def index_at(self, steps: int) -> int:
        """The newest snapshot when so many steps had ended."""
        return max(i for i, shot in enumerate(self.snapshots) if shot.step <= max(0, steps))

    def bars(self, index: int) -> list[_Bar]:
        """Every run at a moment, in the order of the drawing."""
        held, before = self._union.held[index], self._union.held[:index]
        ever = {number for earlier in before for number in earlier}
        prompts = [
            self._prompts[name] for name in self.snapshots[index].finished if name in self._prompts
        ]
        found = []
        for run in self._union.runs:
            parts = {"owned": 0, "cached": 0, "evicted": 0}
            for spot in run.spots:
                if spot.number in held:
                    parts["owned" if held[spot.number] else "cached"] += len(spot.page)
                elif spot.number in ever:
                    parts["evicted"] += len(spot.page)
            # Pages behind a prompt hold what was generated: their maker had them once.
            readers = max(1, run.readers(prompts))
            found.append(_Bar(run, run.spots[0].start, **parts, readers=readers))
        return found

    def traces(self, index: int) -> list[dict[str, Any]]:
        """Keywords of the figure's traces: branches, three kinds of bars, ends of nodes."""
        bars = self.bars(index)
        lines: list[tuple[float | None, float | None]] = []
        for bar in bars:
            parent = bar.run.spots[0].parent
            if parent is not None and parent.row != bar.run.row and bar.held + bar.evicted:
                lines += [(bar.start, parent.row), (bar.start, bar.run.row), (None, None)]
        made: list[dict[str, Any]] = [{"x": [x for x, _ in lines], "y": [y for _, y in lines]}]
        for kind in LOOKS:
            made.append(self._kind(kind, bars))
        ends = self._union.ends[index]
        made.append({"x": [spot.end for spot in ends], "y": [spot.row for spot in ends]})
        return made

    def _kind(self, kind: str, bars: Sequence[_Bar]) -> dict[str, Any]:
        before = {"owned": ("",), "cached": ("owned",), "evicted": ("owned", "cached")}[kind]
        begin = [b.start + sum(getattr(b, name) for name in before if name) for b in bars]
        # Nothing at all where there is nothing: an empty bar would still draw its outline.
        length = [getattr(b, kind) or None for b in bars]
        # One text per run, on its first part.
        first = [kind != "evicted" and not any(getattr(b, n) for n in before if n) for b in bars]
        texts = [
            self._label(text, bar) if shown and n else ""
            for text, bar, shown, n in zip(self._texts, bars, first, length, strict=True)
        ]
        return {
            "base": begin,
            "x": length,
            "y": [b.run.row for b in bars],
            "width": [_height(b.readers) for b in bars],
            "text": texts,
            "customdata": [self._hover(t, b) for t, b in zip(self._texts, bars, strict=True)],
        }

    def _label(self, text: str, bar: _Bar) -> str:
        room = int(bar.held / self._span * _INNER_PX / _CHAR_PX)
        count = f"×{bar.readers} " if bar.readers > 1 else ""
        shown = " ".join(text.split())
        left = room - len(count)
        if left < 4:
            return count.strip() if room >= len(count.strip()) else ""
        return count + theme.plot_text(shown if len(shown) <= left else shown[: left - 1] + "…")

    def _hover(self, text: str, bar: _Bar) -> str:
        said = " ".join(text.split())
        who = theme.format_count(bar.readers, "request")
        return f"{who}; {bar.held:,} tokens from {bar.start:,}<br>{theme.plot_text(said[:90])}"

    def heading(self, index: int) -> str:
        """The title at a moment."""
        shot = self.snapshots[index]
        done = theme.format_count(len(shot.finished), "request")
        return f"The prefix tree after {done}: {theme.format_count(shot.num_pages, 'page')}"

    def figure(self, index: int = -1) -> LabFigure:
        """The tree at a moment, the end by default."""
        index %= len(self.snapshots)
        branches, *rest, ends = self.traces(index)
        figure = go.Figure(go.Scatter(branches | _BRANCH))
        for (kind, look), drawn in zip(LOOKS.items(), rest, strict=True):
            figure.add_trace(go.Bar(drawn | _bar(kind, look)))
        figure.add_trace(go.Scatter(ends | _END))
        rows = self._union.num_rows
        figure.update_xaxes(
            title={"text": "position in the prompt (tokens, counted)"}, range=[0, 1.01 * self._span]
        )
        figure.update_yaxes(visible=False, range=[rows - 0.4, -0.6])
        figure.update_layout(
            theme.layout(self.heading(index), height=120 + _ROW_PX * rows, barmode="overlay",
                         margin={"l": 16})
        )  # fmt: skip
        side = given.sides(self.growth.run)
        bars = self.bars(index)
        return LabFigure(
            figure=figure,
            caption=given.caption(side),
            takeaway=given.told(side, self._takeaway(index)),
            alt=self._alt(index, bars),
            table=[
                {
                    "text": " ".join(text.split())[:40],
                    "from token": bar.start,
                    "held by requests": bar.owned,
                    "cached": bar.cached,
                    "evicted": bar.evicted,
                    "requests": bar.readers,
                }
                for text, bar in zip(self._texts, bars, strict=True)
                if bar.held or bar.evicted
            ],
        )

    def _takeaway(self, index: int) -> str:
        shot = self.snapshots[index]
        if not shot.finished:
            return "The tree is empty: nothing has been computed yet."
        asked = sum(len(self._prompts.get(name, ())) for name in shot.finished)
        share = f" ({theme.format_percent(shot.hit_tokens / asked)})" if asked else ""
        evicted = f"; {shot.evicted_pages:,} pages were evicted" if shot.evicted_pages else ""
        return (
            f"After {theme.format_count(len(shot.finished), 'request')}, {shot.hit_tokens:,} of "
            f"{asked:,} prompt tokens{share} were found in the tree, which holds "
            f"{theme.format_count(shot.num_pages, 'page')} in "
            f"{theme.format_count(len(shot.nodes), 'node')}{evicted}."
        )

    def _alt(self, index: int, bars: Sequence[_Bar]) -> str:
        shown = [(t, b) for t, b in zip(self._texts, bars, strict=True) if b.held]
        told = []
        for text, bar in sorted(shown, key=lambda each: -each[1].readers)[:6]:
            said = " ".join(text.split())[:30]
            who = theme.format_count(bar.readers, "request")
            told.append(f"“{said}”, {bar.held:,} tokens from {bar.start:,}, {who}")
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        evicted = sum(1 for bar in bars if bar.evicted)
        gone = f" Hatched, {theme.format_count(evicted, 'evicted run')}." if evicted else ""
        return (
            f"Tree of prefixes from left to right: {theme.format_count(len(shown), 'run')} of "
            f"tokens, higher where more requests begin with them. {'; '.join(told)}{more}.{gone}"
        )


def _height(readers: int) -> float:
    """Of a bar, in rows: grows with each doubling of its readers."""
    return min(0.92, 0.42 + 0.14 * math.log2(readers))


def _bar(kind: str, look: theme.Look) -> dict[str, Any]:
    dark = theme.on(look.colour)
    line = {"width": 1, "color": theme.INK} if kind == "evicted" else {"width": 0}
    return {
        "orientation": "h",
        "name": look.label,
        "marker": look.marker(line=line),
        "textposition": "inside",
        "insidetextanchor": "start",
        "constraintext": "none",
        "textangle": 0,
        "textfont": {"size": 11, "color": dark},
        "hovertemplate": "%{customdata}<extra></extra>",
    }


_BRANCH: dict[str, Any] = {
    "mode": "lines",
    "line": {"color": theme.INK, "width": 1.5},
    "showlegend": False,
    "hoverinfo": "skip",
}
_END: dict[str, Any] = {
    "mode": "markers",
    "name": NODE_END,
    "marker": {"symbol": "line-ns-open", "size": 15, "color": theme.INK, "line": {"width": 2.5}},
    "hoverinfo": "skip",
}


def radix_tree(
    growth: TreeGrowth,
    tokenizer: Texts | None,
    prompts: Mapping[str, Sequence[int]],
    index: int = -1,
) -> LabFigure:
    """The prefix index of a run at one of its snapshots, the end by default.

    `prompts` maps request names to token ids; for traffic, names are "0", "1", ... in order.
    """
    return RadixTree(growth, tokenizer, prompts).figure(index)
