"""What panels show: sentences, tables and figures as widgets, readable without colour or sight.

A figure is drawn from a `LabFigure`, live or final, and has one writer at a time. Knows nothing
about runs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Literal

import ipywidgets as widgets
import traitlets
from IPython.display import display

from widgets import theme
from widgets.figures.lab_figure import LabFigure
from widgets.figures.render import table_html
from widgets.notebooks.fallback import bundle
from widgets.replays.live import LiveFigure, prepare

SETTINGS_CHANGED = "Settings have changed: run again."

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
    # Without a colour too: sentences of several kinds stand below each other.
    style = f"border-left:3px solid {colour};padding:.1rem .5rem;max-width:60rem;line-height:1.45"
    return f'<div role="{role}" style="{style}">{sign}{escape(text)}</div>'


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
    """A place for text, as wide as the box it stands in."""
    return widgets.HTML(value, layout=widgets.Layout(width="auto"))


def badge(text: str, details: str) -> str:
    """A few words, with a sentence behind them: for what is true all over the course."""
    return (
        f'{theme.STYLE}<details class="lab-badge"><summary>{escape(text)}</summary>'
        f"<p>{escape(details)}</p></details>"
    )


class Results:
    """What came out of a run, greyed out once the settings are others. `box` holds it."""

    def __init__(self) -> None:
        self._note = html()
        self.box = widgets.VBox([])
        self.box.add_class("lab-results")
        self.widget = widgets.VBox([self._note, self.box])

    @property
    def stale(self) -> bool:
        """True while greyed out."""
        return bool(self._note.value)

    def grey_out(self, why: str = SETTINGS_CHANGED) -> None:
        """Say in a sentence that this is another run's, and take its colour away."""
        self._note.value = sentence(why, "info")
        self.widget.add_class("lab-stale")

    def restore(self) -> None:
        """Show them as they are: a run has given new ones, or the old settings are back."""
        self._note.value = ""
        self.widget.remove_class("lab-stale")


class Accordion(widgets.VBox):
    """Titles that show what is below them, one at a time: `selected_index`, None for none.

    ipywidgets' own cannot be opened from the keyboard. The page opens and closes by itself (see
    `sheet`), also while the kernel is busy.
    """

    selected_index = traitlets.Int(None, allow_none=True)

    def __init__(
        self,
        children: Sequence[widgets.Widget],
        titles: Sequence[str],
        selected_index: int | None = None,
    ) -> None:
        self.titles = tuple(titles)
        self._buttons = [
            widgets.ToggleButton(description=title, tooltip=f"Show or hide: {title}")
            for title in titles
        ]
        rows: list[widgets.Widget] = []
        for place, (button, child) in enumerate(zip(self._buttons, children, strict=True)):
            rows += (button, widgets.VBox([child]))
            button.observe(partial(self._pressed, place), "value")
        super().__init__(rows)
        self.add_class("lab-folds")
        self.observe(self._show, "selected_index")
        self.selected_index = selected_index
        self._show()

    def _pressed(self, place: int, change: Mapping[str, Any]) -> None:
        if change["new"]:
            self.selected_index = place
        elif self.selected_index == place:
            self.selected_index = None

    def _show(self, change: object = None) -> None:
        for place, button in enumerate(self._buttons):
            button.value = place == self.selected_index
            button.icon = "caret-down" if button.value else "caret-right"


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
        return html(table(facts_rows(shown)))
    return html(sentence(str(shown)))


def facts_rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Facts as rows of a table; those named "side: fact" share a row, with a column for each side.

    A fact that one side alone has keeps a row of its own name.
    """
    parts = {name: name.partition(": ") for name in facts}
    count = Counter(fact for _, _, fact in parts.values() if fact)
    rows: dict[str, dict[str, Any]] = {}
    for name, value in facts.items():
        side, _, fact = parts[name]
        if count[fact] > 1:
            rows.setdefault(fact, {"fact": fact})[side] = value
        else:
            rows[name] = {"fact": name, "value": value}
    # What belongs to no side first.
    return sorted(rows.values(), key=lambda row: "value" not in row)


def _still(figure: LabFigure) -> widgets.Widget:
    """A figure that will not change, as wide as the page whenever that changes."""
    view = FigureView()
    view.draw(figure)
    return view.widget


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

    def draw(self, figure: LabFigure, *, anew: bool = False) -> None:
        """Show `figure` in place of what was there. Headless, only its words.

        `anew` for the figure that stays: in a new plot, because a page that was busy when the old
        one was made may take no more changes to it.
        """
        self.shown = figure
        self._words.value = theme.STYLE + figure.words_html()
        if theme.headless():
            self.widget.children = (self._words,)
            return
        if self._plot is not None and not anew:
            self._plot.show(figure.figure)
            return
        old, self._plot = self._plot, LiveFigure(figure.figure)
        self.widget.children = (self._plot.widget, self._words)
        if old is not None:
            old.widget.close()
