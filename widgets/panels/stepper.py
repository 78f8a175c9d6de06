"""Stepper: one figure in several states, moved through by hand.

`Stepper(count, figure, label)` asks `figure(i)` for the i-th state. Nothing plays by itself; slider
and buttons work from the keyboard. Knows nothing about what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from widgets.figures.lab_figure import LabFigure
from widgets.panels import views


class Stepper(views.Displayed):
    """A figure of `count` states, the first one shown; headless, its words."""

    def __init__(
        self,
        count: int,
        figure: Callable[[int], LabFigure],
        *,
        title: str,
        what: str = "Step",
        start: int = 0,
    ) -> None:
        if count < 1 or not 0 <= start < count:
            raise ValueError(f"Stepper(count={count}, start={start}): expected a state to start in")
        self.state, self.title, self.what = figure, title, what
        self.view = views.FigureView()
        self.slider = widgets.IntSlider(
            start + 1, 1, max(2, count), description=what, disabled=count == 1,
            layout=widgets.Layout(flex="1 1 16rem", min_width="10rem"),
        )  # fmt: skip
        self.back = widgets.Button(icon="step-backward", tooltip=f"One {what.lower()} back")
        self.forward = widgets.Button(icon="step-forward", tooltip=f"One {what.lower()} forward")
        for button in (self.back, self.forward):
            button.layout.width = "3rem"
        self.back.on_click(lambda _: self.step(-1))
        self.forward.on_click(lambda _: self.step(1))
        self.slider.observe(lambda change: self._show(), "value")
        self.count = count
        row = widgets.HBox(
            [self.back, self.forward, self.slider],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        heading = views.html(f'<b role="heading" aria-level="4">{escape(title)}</b>')
        self.widget = widgets.VBox([heading, row, self.view.widget])
        self._show()

    @property
    def index(self) -> int:
        """The state shown, from 0."""
        return min(int(self.slider.value), self.count) - 1

    def step(self, by: int) -> None:
        """Move by whole states, within what there is."""
        self.slider.value = min(max(1, self.slider.value + by), self.count)

    def _show(self) -> None:
        self.view.draw(self.state(self.index))

    def __repr__(self) -> str:
        shown = self.view.shown
        return f"{self.title}: {shown.text if shown is not None else ''}"
