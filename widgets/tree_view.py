"""Replay's view of a growing prefix tree: `Replay(trace, views=[TreeView(tree)])`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from widgets import theme
from widgets.figures.radix_tree import RadixTree
from widgets.live import LiveFigure
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
        self._live: LiveFigure | None = None

    @property
    def live(self) -> LiveFigure:
        """The live figure."""
        if self._live is None:
            self._live = LiveFigure(self.figure)
        return self._live

    @property
    def widget(self) -> ipywidgets.Widget:
        """What is displayed."""
        return self.live.widget

    def index(self, moment: Moment) -> int:
        """The snapshot to show."""
        return self.tree.index_at(moment.done[self._side] + 1)

    def move(self, moment: Moment) -> None:
        """Show the tree of that moment."""
        index = self.index(moment)

        def draw(figure: go.Figure) -> None:
            figure.layout.title.text = theme.plot_text(self.tree.heading(index))
            for trace, drawn in zip(figure.data, self.tree.traces(index), strict=True):
                trace.update(drawn)

        self.live.change(draw)
