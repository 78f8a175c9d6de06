"""What a browser tells the kernel, for tests that have none."""

from __future__ import annotations

import plotly.graph_objects as go


def front_end_draws(widget: go.FigureWidget) -> None:
    """The widget is on a page, and plotly.js has drawn it."""
    told = {"trace_deltas": [], "trace_edit_id": widget._last_trace_edit_id}
    widget.set_state({"_js2py_traceDeltas": told})
