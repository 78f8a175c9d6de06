"""A plotly figure as a live widget: whole from the start, as wide as the page, changed at any time.

plotly's own widget opens empty and sends its data after; what is changed while a browser still
loads plotly.js (seconds, on a busy machine) is lost; and it settles for 700 pixels when it is
drawn before it stands in its place. All three are put right here. Knows nothing about what is
drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from widgets.figures.render import CONFIG

Change = Callable[[Any], None]
"""Changes a live figure. It must stand for itself: of several only the newest may be made."""


class LiveFigure:
    """A live copy of a figure, without the tool bar. Any thread may change it."""

    def __init__(self, figure: go.Figure) -> None:
        self.widget: go.FigureWidget = _Whole(figure)
        self._lock = threading.Lock()
        self._seen = False
        self._waiting: Change | None = None
        self.widget.observe(self._drawn, "_js2py_traceDeltas")

    def change(self, make: Change) -> None:
        """Call `make(widget)`: now, or when a front end has drawn the first picture."""
        with self._lock:
            if self._seen:
                make(self.widget)
            else:
                self._waiting = make

    def _drawn(self, message: Any) -> None:
        # A front end says so after each drawing of its own; here the first matters.
        if not message["new"]:
            return
        with self._lock:
            self.widget.unobserve(self._drawn, "_js2py_traceDeltas")
            self._seen = True
            # Any change of the layout measures the place again, because of `autosize`.
            self.widget.layout.meta = "measured"
            if self._waiting is not None:
                self._waiting(self.widget)
                self._waiting = None


class _Whole(go.FigureWidget):
    """Introduces itself to the front end when it has its data, not before."""

    _complete = False

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure)
        self._config = self._config | CONFIG
        self._widget_layout = {**self._widget_layout, "autosize": True}
        self._complete = True
        self.open()

    def open(self) -> None:
        if self._complete:
            super().open()
