"""One visual language for every figure and panel: colours, patterns, dashes, numbers in words.

The colour is the side (A: off, the baseline; B: on), the dash is the provenance, and whatever a
colour says, a pattern, a dash or a label says too. Backgrounds are transparent, so that figures
read on a light and on a dark page. Knows nothing about traces or about what a figure shows.
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

# Read whole before any panel draws. plotly looks into pandas as soon as an import of it has begun:
# where a reader's cell began one while a panel drew in its thread, the drawing failed.
import pandas as pandas
import plotly.graph_objects as go

from widgets import sheet
from widgets.units import (
    byte_unit as byte_unit,
)
from widgets.units import (
    format_bytes as format_bytes,
)
from widgets.units import (
    format_count as format_count,
)
from widgets.units import (
    format_flops as format_flops,
)
from widgets.units import (
    format_percent as format_percent,
)
from widgets.units import (
    format_rate as format_rate,
)
from widgets.units import (
    format_ratio as format_ratio,
)
from widgets.units import (
    format_seconds as format_seconds,
)
from widgets.units import (
    time_unit as time_unit,
)

SIDES: dict[str, str] = {"A": "#0072B2", "B": "#D55E00", "C": "#009E73", "D": "#9944EE"}
"""Side -> colour (Okabe and Ito's blue and vermilion first: told apart by every kind of sight)."""

SIDE_SYMBOLS: dict[str, str] = {"A": "circle", "B": "diamond", "C": "square", "D": "cross"}
SIDE_PATTERNS: dict[str, str] = {"A": "", "B": "/", "C": ".", "D": "x"}

DASHES: dict[str, str] = {"measured": "solid", "modelled": "dash", "recorded": "dot"}
"""Provenance -> plotly's line dash. What was counted is drawn as bars or areas."""

INK = "#777777"
"""Text and axes, as plotly draws them: legible on white and on JupyterLab's dark page. Style sheets
(`STYLE`, exported SVG) put the page's own text colour in its place."""
GRID = "rgba(128, 128, 128, 0.25)"
FAINT = "rgba(128, 128, 128, 0.26)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FONT_SIZE = 13
WIDTH, HEIGHT = 760, 360
"""Pixels of an exported figure; in a notebook the width follows the page."""

CURSOR: dict[str, object] = {"color": "#CC3311", "width": 2}
"""Line of a replay's cursor."""

VEIL = "rgba(127, 126, 125, 0.92)"
"""What a replay has not played yet is behind it: grey where the page's own colour is not known."""

MAX_MARKS = 500
"""Most marks of one plotly trace: beyond, a figure aggregates or says what it left out."""


@dataclass(frozen=True)
class Look:
    """How one kind of mark appears: never by colour alone."""

    label: str
    colour: str
    pattern: str = ""
    """plotly's fill pattern: "", "/", "\\\\", "x", "-", "|", "+", "."."""
    solidity: float = 0.25
    """How dense the pattern is: less where text stands on it."""

    def marker(self, **extra: object) -> dict[str, object]:
        """plotly's `marker` for a bar of this look."""
        pattern: dict[str, object] = {"shape": self.pattern, "size": 6, "fillmode": "overlay"}
        pattern["solidity"] = self.solidity
        if not self.colour.startswith("#"):
            # plotly would take black for a see-through grey: lost on a dark page.
            pattern["fgcolor"] = "rgba(128, 128, 128, 0.85)"
        return {"color": self.colour, "pattern": pattern, "line": {"width": 0}, **extra}


STATES: dict[str, Look] = {
    "waiting": Look("waiting", "rgba(128, 128, 128, 0.25)", "."),
    "prefill": Look("prefill", "#AA4499"),
    "decode": Look("decode", "#44AA99"),
    "recompute": Look("computed again", "#E0A030", "/"),
    "preempted": Look("preempted", "rgba(128, 128, 128, 0.4)", "x"),
    "stalled": Look("no turn in this step", "rgba(128, 128, 128, 0.12)", "-"),
}
"""What a request does in a step. Extend it where a chapter brings a new state."""

STAGES: dict[str, Look] = {
    "schedule": Look("schedule", "#A8326E", "/"),
    "prepare": Look("prepare", "#CC6677", "\\"),
    "forward": Look("forward pass without attention", "#5B5BD6"),
    "attention": Look("attention", "#88CCEE"),
    "sample": Look("sample", "#44AA99", "x"),
    "commit": Look("commit", "#DDCC77", "-"),
    "idle": Look("between steps", "rgba(128, 128, 128, 0.25)", "|"),
}
"""Where a step's time goes, in the order it passes."""

_REQUEST_COLOURS = (
    "#5B5BD6", "#44AA99", "#DDCC77", "#CC6677", "#88CCEE", "#2E8B57", "#AA4499", "#999933",
)  # fmt: skip
_REQUEST_PATTERNS = ("", "/", ".", "x", "\\", "-", "|", "+")


def request_look(index: int, label: str = "") -> Look:
    """The look of the n-th request: eight colours, and a new pattern when they begin again."""
    count = len(_REQUEST_COLOURS)
    pattern = _REQUEST_PATTERNS[index // count % len(_REQUEST_PATTERNS)]
    return Look(label or f"{index}", _REQUEST_COLOURS[index % count], pattern)


def side_keys(names: Iterable[str]) -> dict[str, str]:
    """Side of each name: "A" and "B" are themselves, other names take A, B, ... in order."""
    names = list(names)
    free = [key for key in SIDES if key not in names]
    keys: dict[str, str] = {}
    for name in names:
        if name in SIDES:
            keys[name] = name
        else:
            # More sides than colours begin again; nobody compares more than four at once.
            keys[name] = free.pop(0) if free else list(SIDES)[len(keys) % len(SIDES)]
    return keys


def side_colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of each named side."""
    return {name: SIDES[key] for name, key in side_keys(names).items()}


def dash(provenance: str) -> str:
    """plotly's dash for measured, modelled or recorded lines."""
    return DASHES.get(provenance, "solid")


def translucent(colour: str, opacity: float) -> str:
    """A "#rrggbb" colour as rgba."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def on(colour: str) -> str:
    """Black or white, whichever reads better on a "#rrggbb" colour."""
    if not colour.startswith("#"):
        return INK
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def plot_text(text: str) -> str:
    """Text from outside for a plotly title, label, name or hover: shown letter by letter. plotly
    takes tags, entities and, in hover templates, `%{...}`."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def headless() -> bool:
    """True where nothing is drawn live: `MINSERVE_HEADLESS=1`, and notebooks that a program runs.

    `MINSERVE_HEADLESS=0` says that there is a reader after all.
    """
    return words_only() or (not os.environ.get("MINSERVE_HEADLESS") and unattended())


def words_only() -> bool:
    """True where figures are words too (`MINSERVE_HEADLESS=1`): CI, and chapters as stored."""
    return os.environ.get("MINSERVE_HEADLESS", "") not in ("", "0")


@cache
def unattended() -> bool:
    """True in a kernel of nbconvert, papermill or `jupyter execute`: nobody can press a button.

    They, and no page, say with every cell that there is nobody to ask for input.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return message.get("content", {}).get("allow_stdin") is False


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": GRID,
        "linecolor": INK,
        "tickcolor": INK,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": FONT_SIZE}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": FONT_SIZE, "color": INK},
            "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 8, "t": 10},
                      "y": 1, "yref": "container", "yanchor": "top",
                      "font": {"size": 16, "color": INK}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(SIDES.values()),
            "margin": {"l": 56, "r": 16, "t": 64, "b": 48},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                       "bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}},
            "hoverlabel": {"font": {"size": 12}},
            "xaxis": axis,
            "yaxis": axis,
            "bargap": 0.25,
        }
    )  # fmt: skip


template = _template()


def layout(
    title: str, *, height: int = HEIGHT, panels: bool = False, legend_rows: int = 1, **extra: object
) -> dict[str, object]:
    """What every figure passes to `update_layout`; `panels` leaves room for panel titles, and each
    row of the legend beyond the first makes the figure higher."""
    room = 18 * (legend_rows - 1)
    height += room
    top, bottom = (88 if panels else 66) + room, 48
    margin = {"t": top, "b": bottom, **extra.pop("margin", {})}  # type: ignore[dict-item]
    # The legend stands above the panels' titles: a distance in pixels, in units of the plot.
    lift = (26 if panels else 6) / max(40, height - margin["t"] - margin["b"])
    found: dict[str, object] = {
        "template": template,
        "title": {"text": plot_text(title)},
        "height": height,
        "margin": margin,
        "legend": {"y": 1 + lift, **extra.pop("legend", {})},  # type: ignore[dict-item]
    }
    return found | extra


def style_panels(figure: go.Figure, colours: Iterable[str] = ()) -> None:
    """Panel titles (`make_subplots`) to the left and in the order of the panels, coloured.

    Call it before anything else is annotated.
    """
    given = list(colours)
    for place, note in enumerate(figure.layout.annotations):
        axis = figure.layout["xaxis" if place == 0 else f"xaxis{place + 1}"]
        note.update(
            x=axis.domain[0], xanchor="left", yshift=2,
            font={"size": 13, "weight": 600, "color": given[place] if place < len(given) else INK},
        )  # fmt: skip


TEXT_COLOURS: tuple[str, ...] = (
    *SIDES.values(),
    *(STATES[state].colour for state in ("prefill", "decode", "recompute")),
    "#888888", "#2E8B57", "#CC3311",
)  # fmt: skip
"""Colours that text in a plot may have beside `INK`: `STYLE` makes them readable on any page."""

STYLE = sheet.style(ink=INK, grid=GRID, font=FONT, colours=TEXT_COLOURS)
"""Style sheet of figures and panels, an HTML element."""


def legend_entry(look: Look) -> Mapping[str, object]:
    """Keywords of an empty bar that explains a look in the legend."""
    # A group of its own, or plotly would give every entry the width of the longest.
    return {
        "x": [None],
        "y": [None],
        "name": plot_text(look.label),
        "legendgroup": look.label,
        "marker": look.marker(),
    }
