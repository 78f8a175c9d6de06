"""`LabFigure`: a plotly figure with all that makes it readable away from its notebook.

Takeaway, caption, alternative text and a data table travel with it, on screen, as HTML and as SVG.
Knows nothing about traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from widgets import theme
from widgets.figures import render

Row = dict[str, Any]


@dataclass(frozen=True)
class LabFigure:
    """One figure. `show()`, or as the last value of a cell."""

    figure: go.Figure
    caption: str
    """Where the numbers come from."""
    takeaway: str
    """One generated sentence with the numbers."""
    alt: str
    """Alternative text: what is drawn, for those who cannot see it."""
    table: list[Row] = field(default_factory=list)
    """The drawn numbers, a dict per row."""

    @property
    def text(self) -> str:
        """All the words: takeaway, then caption."""
        return f"{self.takeaway}\n{self.caption}".strip()

    def words_html(self) -> str:
        """Takeaway, caption, and folded description and data, as HTML."""
        return render.words_html(self.takeaway, self.caption, self.alt, self.table)

    def html(self, include_plotlyjs: bool | str = "cdn", full: bool = False) -> str:
        """The figure and its words as HTML that needs no kernel.

        `include_plotlyjs`: "cdn" loads plotly.js from the network, True embeds it (4.5 MB), False
        relies on the page. `full` makes a whole page of it.
        """
        return render.figure_html(
            self.figure, self.words_html(), self.alt, include_plotlyjs, full=full
        )

    def svg(self, path: str | Path | None = None, *, width: int = theme.WIDTH) -> str:
        """The figure as SVG text, also written to `path`; carries takeaway, caption and alt text.

        Needs kaleido and a Chrome or Chromium. Raises RuntimeError, saying how to get them.
        """
        text = render.svg(self.figure, self.takeaway, self.caption, self.alt, width=width)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def png(self, *, width: int = theme.WIDTH, page: str = "#ffffff", scale: float = 1.5) -> bytes:
        """The plot alone as PNG on a page of that colour, to look at. Needs what `svg` needs."""
        return render.png(self.figure, width=width, page=page, scale=scale)

    def show(self) -> None:
        """Display figure and words; the words only where `MINSERVE_HEADLESS` is set."""
        self._ipython_display_()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if theme.words_only():
            display({"text/plain": self.text}, raw=True)
            return
        plot = render.mimebundle(self.figure, self.alt, words="")
        display(plot, raw=True)
        display({"text/html": theme.STYLE + self.words_html(), "text/plain": self.text}, raw=True)

    def _repr_mimebundle_(
        self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        if theme.words_only():
            return {"text/plain": self.text}
        return render.mimebundle(self.figure, self.alt, self.words_html())
