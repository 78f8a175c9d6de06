"""What panels show: sentences, tables and figures as widgets, readable without colour or sight.

A figure is drawn from a `LabFigure`, live or final, and has one writer at a time. Knows nothing
about runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import ipywidgets as widgets
from IPython.display import display

from widgets import theme
from widgets.fallback import bundle
from widgets.figures.lab_figure import LabFigure
from widgets.figures.render import table_html
from widgets.live import LiveFigure, prepare

Kind = Literal["plain", "good", "bad", "info", "problem"]

# A sign beside the border's colour, from those every font has: nothing is said by colour alone.
_SIGNS: dict[str, tuple[str, str]] = {
    "plain": ("", "transparent"),
    "good": ("✓ ", "#009E73"),
    "bad": ("✗ ", "#D55E00"),
    "info": ("", "#0072B2"),
    "problem": ("! ", "#D55E00"),
}


def sentence(text: str, kind: Kind = "plain") -> str:
    """One plain sentence as HTML; announced by screen readers when it changes."""
    if not text:
        return ""
    sign, colour = _SIGNS[kind]
    role = "alert" if kind == "problem" else "status"
    return (
        f'<div role="{role}" style="border-left:3px solid {colour};padding:.1rem .5rem;'
        f'max-width:60rem;line-height:1.45">{sign}{escape(text)}</div>'
    )


def headline(value: str, text: str, size_px: int = 28) -> str:
    """One big number and what it is."""
    return (
        '<div role="status" style="margin:.3rem 0;max-width:60rem">'
        f'<span style="font-size:{size_px}px;font-weight:600;line-height:1.2">{escape(value)}'
        f"</span><br><span>{escape(text)}</span></div>"
    )


def table(rows: Sequence[dict[str, Any]], caption: str = "") -> str:
    """Rows as a table."""
    words = f"<p>{escape(caption)}</p>" if caption else ""
    return f'{theme.STYLE}<div class="lab-figure">{words}{table_html(list(rows))}</div>'


def html(value: str = "") -> widgets.HTML:
    """A place for text."""
    return widgets.HTML(value, layout=widgets.Layout(width="100%"))


Shown = LabFigure | widgets.Widget | Mapping[str, Any] | str
"""What a chapter may show about a result."""


def as_widget(shown: Shown) -> widgets.Widget:
    """A figure, facts or text as a widget."""
    if isinstance(shown, LabFigure):
        return _still(shown)
    own = getattr(shown, "widget", None)  # Replay, TokenView, panels.
    if own is not None:
        return own() if callable(own) else own
    if isinstance(shown, widgets.Widget):
        return shown
    if isinstance(shown, Mapping):
        return html(table([{"fact": name, "value": value} for name, value in shown.items()]))
    return html(sentence(str(shown)))


def _still(figure: LabFigure) -> widgets.Widget:
    """A figure that will not change. A FigureWidget would bring 5 MB of plotly.js to the page."""
    words = html(theme.STYLE + figure.words_html())
    drawn = dict(figure._repr_mimebundle_())
    plot = {"output_type": "display_data", "data": drawn, "metadata": {}}
    return widgets.VBox([widgets.Output(outputs=(plot,)), words])


def print_plain(shown: Shown) -> None:
    """The same as text, equal in every run if the values are: a fact per line."""
    if isinstance(shown, Mapping):
        lines = [f"{name}: {value}" for name, value in shown.items()]
        sys.stdout.write("\n".join(lines) + "\n")
    elif isinstance(shown, str):
        sys.stdout.write(shown + "\n")
    else:
        display(shown)


class Displayed:
    """Something with a `widget`, displayed as it is; headless, as its words."""

    widget: widgets.Widget

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if theme.headless():
            return {"text/plain": repr(self)}
        return bundle(self.widget, repr(self), **options)


class FigureView:
    """A place for a figure and its words. The plot itself is made when first drawn."""

    def __init__(self) -> None:
        if not theme.headless():
            prepare()
        self._plot: LiveFigure | None = None
        self._words = html()
        self.widget = widgets.VBox([])
        self.shown: LabFigure | None = None

    def draw(self, figure: LabFigure) -> None:
        """Show `figure` in place of what was there. Headless, only its words."""
        self.shown = figure
        self._words.value = theme.STYLE + figure.words_html()
        if theme.headless():
            self.widget.children = (self._words,)
            return
        if self._plot is None:
            self._plot = LiveFigure(figure.figure)
            self.widget.children = (self._plot.widget, self._words)
            return
        self._plot.show(figure.figure)
