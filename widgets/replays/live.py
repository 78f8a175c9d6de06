"""A plotly figure as a live widget: as wide as the page, and drawn anew as often as one likes.

plotly's own FigureWidget brings 4.5 MB of JavaScript with every figure, and is dead for good when a
busy machine needs more than two seconds to read them. Here plotly.js comes once, and figures are
sent whole: the page draws the newest, whenever it is ready. Knows nothing about what is drawn.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

from widgets.figures.render import CONFIG


class LiveFigure:
    """A live copy of a figure, without the tool bar. Any thread may change it."""

    def __init__(self, figure: go.Figure) -> None:
        self.figure = go.Figure(figure)
        """What the page shows, or will."""
        self._lock = threading.Lock()
        traces, design = _parts(self.figure)
        self.widget = _Plot(traces=traces, design=design, library=prepare())

    def show(self, figure: go.Figure) -> None:
        """Show `figure` in place of what was there; the reader's zoom stays."""
        with self._lock:
            self.figure = figure
            self._send()

    def change(self, make: Callable[[go.Figure], object]) -> None:
        """Let `make` change the figure, and show it. What stays equal is not sent again."""
        with self._lock:
            make(self.figure)
            self._send()

    def _send(self) -> None:
        traces, design = _parts(self.figure)
        with self.widget.hold_sync():
            self.widget.traces, self.widget.design = traces, design


class Shown:
    """What shows a figure, still or live: `figure` is the still one."""

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure
        self._live: LiveFigure | None = None

    @property
    def live(self) -> LiveFigure:
        """The figure on the page; made when it is first asked for."""
        if self._live is None:
            self._live = LiveFigure(self.figure)
        return self._live

    @property
    def widget(self) -> ipywidgets.Widget:
        """The live figure's widget."""
        return self.live.widget


def _parts(figure: go.Figure) -> tuple[list[Any], dict[str, Any]]:
    plain = json.loads(figure.to_json())
    # A constant revision: zoom and hidden traces outlive a drawing.
    return plain["data"], plain["layout"] | {"autosize": True, "uirevision": "the reader's"}


_SCRIPT = Path(__file__).with_suffix(".js")


class _Library(anywidget.AnyWidget):
    """plotly.js as text, for all figures of a kernel. It is never displayed."""

    _esm = _SCRIPT
    source = traitlets.Unicode().tag(sync=True)


@cache
def prepare() -> _Library:
    """Bring plotly.js to the page: call it before the first figure is due."""
    return _Library(source=get_plotlyjs())


class _Plot(anywidget.AnyWidget):
    """A figure; the script draws it."""

    _esm = _SCRIPT
    traces = traitlets.List().tag(sync=True)
    design = traitlets.Dict().tag(sync=True)
    config = traitlets.Dict(CONFIG).tag(sync=True)
    library = traitlets.Instance(_Library).tag(sync=True, **ipywidgets.widget_serialization)
