"""A plotly figure as a live widget that fills the page's width."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from widgets.figures.render import CONFIG


def figure_widget(figure: go.Figure) -> go.FigureWidget:
    """A live copy of a figure, without the tool bar.

    plotly measures its place before the widget stands in it and settles for 700 pixels. With
    `autosize` set, any later change of the layout measures again; one is sent as soon as the front
    end reports that it has drawn.
    """
    live = go.FigureWidget(figure)
    live._config = live._config | CONFIG
    live.layout.autosize = True

    def fit(change: Any) -> None:
        live.unobserve(fit, "_js2py_layoutDelta")
        live.layout.meta = "measured"

    live.observe(fit, "_js2py_layoutDelta")
    return live
