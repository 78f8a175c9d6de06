"""What a front end gets: a panel with its style sheet, or words and where the figures are.

Every front end chooses from a bundle what it can show: the panel itself, or this text. `saving`
leaves only the text in a saved notebook.
"""

from __future__ import annotations

from html import escape
from typing import Any

import comm
import ipywidgets

from widgets import theme
from widgets.notebooks.saving import MARK

NO_WIDGETS = (
    f"{MARK} To bring it to life choose Run, then Run All Cells, where Jupyter widgets are shown: "
    "in JupyterLab, and in VS Code and Colab with their support for widgets. The chapter's "
    "figures, as recorded, are in labs/figures/."
)

# Arrow keys in a menu, and letters, would be JupyterLab's own: they move to another cell or delete
# this one. It leaves alone what has this attribute, which no Python can set.
_KEYS = (
    "this.closest('.lab').addEventListener('focusin', "
    "event => { event.target.dataset.lmSuppressShortcuts = 'true'; })"
)
_SHEET = theme.STYLE.replace("<style>", f'<style onload="{_KEYS}">', 1)


def bundle(widget: ipywidgets.Widget, words: str, **options: Any) -> dict[str, Any]:
    """The widget with the lab's style sheet, or its words and a sentence."""
    sheet = ipywidgets.HTML(_SHEET, layout=ipywidgets.Layout(display="none"))
    page = ipywidgets.VBox([sheet, widget])
    page.add_class("lab")
    shown: dict[str, Any] = page._repr_mimebundle_(**options)
    page_words = f"<p>{escape(words)}</p><p><em>{escape(NO_WIDGETS)}</em></p>"
    return shown | {"text/plain": f"{words}\n{NO_WIDGETS}", "text/html": page_words}


def _stay_silent() -> None:
    """Let the widgets of this kernel tell nothing to the program that runs it.

    No page shows them, and it would store the state of each in the notebook: 0.3 to 1 MB a chapter.
    """
    comm.create_comm = comm.DummyComm


if theme.headless():
    _stay_silent()
