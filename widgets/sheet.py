"""The style sheet of figures and panels, and the colours that text may have.

No colour is readable on a white and on a dark page alike (4.5 to 1 needs it darker than mid grey on
one, lighter on the other). So text in a plot is drawn in a colour of `theme`, and the page mixes it
with its own text colour. Knows nothing about what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable

SHARE = 0.55
"""How much of its own colour a coloured text keeps; the rest is the page's text colour."""

# Where a page has no colours of Jupyter's, text is as readable as the text around it.
PAGE_INK = "var(--jp-ui-font-color1, var(--vscode-editor-foreground, currentColor))"


def rgb(colour: str) -> str:
    """A "#rrggbb" colour as browsers write it in a style."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


def text_rules(ink: str, colours: Iterable[str], page_ink: str, within: str = "") -> str:
    """Rules for SVG text drawn in `ink` or one of `colours`, on a page whose text is `page_ink`."""
    rules = [f"{_drawn_in(ink, within)} {{ fill: {page_ink} !important; }}"]
    for colour in colours:
        mixed = f"color-mix(in srgb, {colour} {100 * SHARE:g}%, {page_ink})"
        rules.append(f"{_drawn_in(colour, within)} {{ fill: {mixed} !important; }}")
    return "\n".join(rules)


def _drawn_in(colour: str, within: str) -> str:
    return ", ".join(
        f'{within}{tag}[style*="{written}"]'
        for tag in ("text", "tspan")
        for written in (colour, rgb(colour))
    )


def style(*, ink: str, grid: str, font: str, colours: Iterable[str]) -> str:
    """The style sheet as an HTML element, to stand beside every figure and panel."""
    plots = text_rules(ink, colours, PAGE_INK, ".js-plotly-plot ") + _COVER
    figures = _FIGURES.replace("INK", PAGE_INK).replace("GRID", grid).replace("FONT", font)
    return f"<style>\n{plots}\n{figures}{_PANELS}{_QUIET}</style>"


# What a replay has not reached yet is covered in the page's own colour.
_COVER = """
.js-plotly-plot .shapelayer path[style*="rgb(127, 126, 125)"] {
  fill: var(--jp-layout-color0, var(--vscode-editor-background, Canvas)) !important; }
"""

_FIGURES = """
.lab-figure { font: 13px/1.45 FONT; color: INK; max-width: 60rem; margin: 0.2rem 0 0.8rem;
  overflow-wrap: anywhere; }
.lab-figure p { margin: 0 0 0.3rem; }
.lab-figure .takeaway { font-size: 14px; font-weight: 600; }
.lab-figure details { margin-top: 0.3rem; }
.lab-figure summary, .lab-badge summary { cursor: pointer; width: fit-content; }
.lab-figure table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.lab-figure th, .lab-figure td { padding: 0.15rem 1.2rem 0.15rem 0; text-align: left;
  vertical-align: baseline; border-bottom: 1px solid GRID; overflow-wrap: break-word; }
.lab-figure .n { text-align: right; }
.lab-figure th { font-weight: 600; }
.jp-Notebook .jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.lab-badge { color: INK; margin: 0.2rem 0; max-width: 60rem; }
.lab-badge summary { border: 1px solid GRID; border-radius: 1em; padding: 0 0.7em;
  font-size: 12px; line-height: 1.7; }
"""

# Widgets are as wide as their place and no wider: ipywidgets adds margins to 100 %, which scrolls.
# Space between them is a gap. Words wrap; ipywidgets would cut them.
_PANELS = """
.lab { color: var(--jp-ui-font-color1, inherit); padding: 0.3rem 0; }
.lab.jupyter-widgets, .lab .jupyter-widgets { margin: 0; max-width: 100%; min-width: 0; }
.lab.widget-box, .lab .widget-box { overflow: visible; gap: 0.4rem; }
.lab .widget-hbox { flex-wrap: wrap; align-items: end; }
.lab .widget-html > .widget-html-content { min-width: 0; max-width: 100%; line-height: 1.45;
  overflow-wrap: anywhere; }
.lab .widget-html:has(> .widget-html-content:empty) { display: none; }
.lab .jupyter-button { width: auto; min-width: min-content; padding: 0 1rem; }
.lab .widget-vbox > .jupyter-button { align-self: start; }
.lab .widget-upload { overflow: visible; }
.lab .widget-radio-box label { white-space: normal; height: auto; line-height: 1.45; }
.lab .jupyter-button:focus-visible, .lab summary:focus-visible, .lab input:focus-visible,
.lab select:focus-visible, .lab .noUi-handle:focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 2px; }
.lab .lab-folds { gap: 2px; }
.lab .lab-folds > .jupyter-button { width: 100%; padding: 0; text-align: left; background: none;
  color: inherit; border-bottom: 1px solid var(--jp-border-color2, currentColor); }
.lab .lab-folds > .jupyter-button:not(.mod-active) + .widget-box { display: none; }
.lab .lab-stale > .lab-results { filter: grayscale(1); opacity: 0.62; }
"""

_QUIET = """
.lab .lab-quiet { display: none; }
@media (prefers-reduced-motion: reduce) {
  .lab .lab-quiet { display: block; }
  .lab *, .js-plotly-plot * { transition: none !important; animation: none !important;
    scroll-behavior: auto !important; }
}
"""
