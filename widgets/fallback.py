"""What a front end gets: a panel with its style sheet, or words and where the figures are.

Every front end chooses from a bundle what it can show: the panel itself, or this text.
"""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets import theme

NO_WIDGETS = (
    "A panel stands here where Jupyter widgets are shown: in JupyterLab, and in VS Code and Colab "
    "with their support for widgets. Without it, the chapter's figures, as recorded, are in "
    "labs/figures/."
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
    return shown | {"text/plain": f"{words}\n{NO_WIDGETS}"}
