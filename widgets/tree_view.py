"""Replay's view of a growing prefix tree: `Replay(trace, views=[TreeView(tree)])`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widgets.figures.radix_tree import RadixTree
from widgets.live import figure_widget
from widgets.moments import Moment

if TYPE_CHECKING:
    import ipywidgets
    import plotly.graph_objects as go


class TreeView:
    """The tree as it stood after the last request that had ended; for `side` of several runs."""

    title = "prefix tree"

    def __init__(self, tree: RadixTree, side: str = "") -> None:
        self.tree = tree
        self._side = side
        self.figure = tree.figure(0).figure
        self._live: go.FigureWidget | None = None

    @property
    def widget(self) -> ipywidgets.Widget:
        """The live figure."""
        if self._live is None:
            self._live = figure_widget(self.figure)
        return self._live

    def index(self, moment: Moment) -> int:
        """The snapshot to show."""
        return self.tree.index_at(moment.done[self._side] + 1)

    def move(self, moment: Moment) -> None:
        """Show the tree of that moment."""
        index = self.index(moment)
        live: Any = self.widget
        with live.batch_update():
            live.layout.title.text = self.tree.heading(index)
            for trace, drawn in zip(live.data, self.tree.traces(index), strict=True):
                trace.update(drawn)
