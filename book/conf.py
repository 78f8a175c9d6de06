"""Sphinx's settings. `book.build` writes the pages, copies this file there and runs Sphinx."""

from typing import Any

project = "minserve"
author = "the authors of minserve"
html_title = "minserve"
html_favicon = "static/icon.svg"
language = "en"

extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_heading_anchors = 3
exclude_patterns = ["static"]

html_theme = "furo"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["lab.css", "book.css"]
html_js_files = [(name, {"defer": "defer"}) for name in ("fit.js", "book.js")]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False


def _load_plotly_early(app: Any, name: str, template: str, context: Any, tree: Any) -> None:
    """In the head of a page with figures, so that it arrives while the page is being read."""
    if 'class="book-figure"' in context.get("body", ""):
        script = context["pathto"]("_static/plotly.min.js", resource=True)
        context["metatags"] += f'<script async id="plotly" src="{script}"></script>'


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("html-page-context", _load_plotly_early)
