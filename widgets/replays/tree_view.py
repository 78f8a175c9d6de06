"""Replay's view of a growing prefix tree: `Replay(trace, views=[TreeView(tree)])`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widgets import theme
from widgets.figures.memory.radix_tree import RadixTree
from widgets.replays.live import Shown
from widgets.replays.moments import Moment

if TYPE_CHECKING:
    import plotly.graph_objects as go


class TreeView(Shown):
    """The tree as it stood after the last request that had ended; for `side` of several runs."""

    title = "prefix tree"

    def __init__(self, tree: RadixTree, side: str = "") -> None:
        self.tree = tree
        self._side = side
        super().__init__(tree.figure(0).figure)

    def index(self, moment: Moment) -> int:
        """The snapshot to show."""
        return self.tree.index_at(moment.done[self._side] + 1)

    def frame(self, moment: Moment) -> dict[str, Any]:
        """What differs at that moment, as a frame of plotly's: for readers without a kernel."""
        index = self.index(moment)
        traces = self.tree.traces(index)
        return {
            "data": traces,
            "traces": list(range(len(traces))),
            "layout": {"title": {"text": theme.plot_text(self.tree.heading(index))}},
        }

    def move(self, moment: Moment) -> None:
        """Show the tree of that moment."""
        index = self.index(moment)

        def draw(figure: go.Figure) -> None:
            figure.layout.title.text = theme.plot_text(self.tree.heading(index))
            for trace, drawn in zip(figure.data, self.tree.traces(index), strict=True):
                trace.update(drawn)

        self.live.change(draw)
