"""A plotly figure and its words as HTML, SVG, PNG and notebook output.

Takes figures as they are; decides nothing about what they show.
"""

from __future__ import annotations

import html
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from widgets import sheet, theme
from widgets.notebooks.saving import NO_PLOTLY

MIME = "application/vnd.plotly.v1+json"
MAX_TABLE_ROWS = 60
"""Rows of a folded data table: executed notebooks must stay small. `LabFigure.table` has all."""

_NO_KALEIDO = (
    "{problem}. Exporting a figure needs the Python package kaleido and a Chrome or Chromium: "
    "pip install kaleido, and for example apt-get install chromium"
)
_NO_PLOTLY = f"<p><em>{NO_PLOTLY}; here are its words and data.</em></p>"
KINDS = ("Measured", "Counted", "Modelled", "Recorded")
"""First words of a caption that say what kind of numbers a figure shows."""
_LINE = 17
_PAD = 14


def words_html(takeaway: str, caption: str, alt: str, table: Sequence[dict[str, Any]]) -> str:
    """The words under a figure; source, description and data are folded away."""
    shown = f'<p class="takeaway">{html.escape(takeaway)}</p>' if takeaway else ""
    return f'<div class="lab-figure">{shown}{source_html(caption, alt, table)}</div>'


def source_html(caption: str, alt: str = "", table: Sequence[dict[str, Any]] = ()) -> str:
    """Where numbers come from, folded away with what else there is to say; "" for nothing."""
    if not (caption or alt or table):
        return ""
    parts = [f"<p>{html.escape(text)}</p>" for text in (caption, alt) if text]
    name = "Source and data" if table else "Source" if caption else "Description"
    # Measured and modelled must never be taken for each other, also while this is folded.
    kind = caption.partition(" ")[0]
    name = f"{name}: {kind.lower()}" if kind in KINDS else name
    return f"<details><summary>{name}</summary>{''.join(parts)}{table_html(table)}</details>"


def table_html(table: Sequence[dict[str, Any]], max_rows: int = MAX_TABLE_ROWS) -> str:
    """Rows as an HTML table; "" for none."""
    if not table:
        return ""
    columns = list(dict.fromkeys(name for row in table for name in row))
    head = "".join(
        f'<th scope="col"{_of_numbers(table, name)}>{html.escape(str(name))}</th>'
        for name in columns
    )
    body = "".join(
        "<tr>" + "".join(_cell(row.get(name)) for name in columns) + "</tr>"
        for row in table[:max_rows]
    )
    more = len(table) - max_rows
    note = f"<p>{more:,} more rows in <code>.table</code>.</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_numbers(table: Sequence[dict[str, Any]], name: str) -> str:
    """The class of a column that is read by its last digits."""
    values = [row[name] for row in table if row.get(name) is not None]
    return " class=n" if values and all(map(_is_number, values)) else ""


def _cell(value: object) -> str:
    if value is None:
        return "<td></td>"
    if not _is_number(value):
        return f"<td>{html.escape(str(value))}</td>"
    text = f"{value:.6g}" if isinstance(value, float) else f"{value:,}"
    return f"<td class=n>{text}</td>"


def figure_html(
    figure: go.Figure | dict[str, Any],
    words: str,
    alt: str,
    include_plotlyjs: bool | str,
    *,
    full: bool,
) -> str:
    """The figure, labelled with its alternative text, above its words. Frames wait to be played.

    A dict is taken as it is: checking the numbers of a thousand frames takes seconds.
    """
    plot = pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=include_plotlyjs,
        config=CONFIG,
        auto_play=False,
        validate=False,
    )
    body = (
        f'{theme.STYLE}<figure style="margin:0"><div role="img" aria-label="{html.escape(alt)}">'
        f"{plot}</div><figcaption>{words}</figcaption></figure>"
    )
    if not full:
        return body
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light dark"><title>{html.escape(alt[:80])}</title></head>'
        f"<body>{body}</body></html>"
    )


CONFIG: dict[str, Any] = {"displaylogo": False, "responsive": True, "displayModeBar": False}
"""plotly's display options: no logo, no tool bar over the data."""


def mimebundle(figure: go.Figure, alt: str, words: str) -> dict[str, Any]:
    """Notebook output: an interactive plot where the front end has plotly, words elsewhere.

    plotly's own HTML output would embed 4.5 MB of JavaScript in every executed notebook.
    """
    if "google.colab" in sys.modules:
        # Colab draws HTML only, each output on a page of its own.
        return {"text/html": figure_html(figure, words, alt, "cdn", full=False), "text/plain": alt}
    plot = json.loads(figure.to_json())
    plot["config"] = CONFIG
    if theme.unattended():
        # An export to HTML has no plotly of its own: it takes this, which fetches it.
        page = figure_html(figure, words, alt, "cdn", full=False)
    else:
        page = f"{theme.STYLE}{_NO_PLOTLY}{words}"
    return {MIME: plot, "text/html": page, "text/plain": alt}


def svg(figure: go.Figure, takeaway: str, caption: str, alt: str, *, width: int) -> str:
    """SVG with the words below, the alternative text as title, and colours for dark pages."""
    height = _height(figure)
    return _with_words(_image(figure, "svg", width, height).decode(), takeaway, caption, alt)


def png(figure: go.Figure, *, width: int, page: str, scale: float) -> bytes:
    """The plot alone, on a page of that colour."""
    copy = go.Figure(figure)
    copy.update_layout(paper_bgcolor=page)
    return _image(copy, "png", width, _height(figure), scale)


def _height(figure: go.Figure) -> int:
    return int(figure.layout.height or theme.HEIGHT)


def _image(figure: go.Figure, kind: str, width: int, height: int, scale: float = 1) -> bytes:
    try:
        with warnings.catch_warnings():
            # Said by plotly about its own argument whenever a browser is kept for many images.
            warnings.filterwarnings("ignore", message="The kopts argument is ignored")
            image: bytes = figure.to_image(format=kind, width=width, height=height, scale=scale)
    except (ValueError, ImportError, RuntimeError) as error:
        # kaleido's errors for a missing browser are pages long; the first line names the cause.
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RuntimeError(_NO_KALEIDO.format(problem=problem)) from error
    return image


def _with_words(text: str, takeaway: str, caption: str, alt: str) -> str:
    match = re.search(r'<svg[^>]*?width="([\d.]+)" height="([\d.]+)"[^>]*>', text)
    if match is None:
        raise RuntimeError("kaleido returned something that is not an SVG image")
    width, height = float(match[1]), float(match[2])
    # Wide system fonts (DejaVu) must fit as well.
    bold = textwrap.wrap(takeaway, int((width - 2 * _PAD) / 8.7)) if takeaway else []
    plain = textwrap.wrap(caption, int((width - 2 * _PAD) / 6.9)) if caption else []
    lines, y = [], height + 6
    for line in bold:
        y += _LINE + 1
        lines.append(_text(line, y, 'font-size="14" font-weight="600"'))
    for line in plain:
        y += _LINE
        lines.append(_text(line, y, 'font-size="11.5"'))
    total = y + _PAD
    opening = match[0]
    opening = opening.replace(f'height="{match[2]}"', f'height="{total:g}"', 1)
    opening = re.sub(r'viewBox="[^"]*"', f'viewBox="0 0 {width:g} {total:g}"', opening)
    opening = opening.replace("<svg", '<svg role="img" aria-labelledby="lab-alt"', 1)
    head = f'<title id="lab-alt">{html.escape(alt)}</title>{_SVG_STYLE}'
    body = text.replace(match[0], opening + head, 1)
    return body[: body.rindex("</svg>")] + "".join(lines) + "</svg>\n"


def _text(line: str, y: float, attributes: str) -> str:
    style = f"font-family: {html.escape(theme.FONT)}; fill: {sheet.rgb(theme.INK)};"
    return f'<text x="{_PAD}" y="{y:g}" {attributes} style="{style}">{html.escape(line)}</text>'


# GitHub shows SVG as an image, where the page's own colours are out of reach but the reader's
# preference is known.
_SVG_STYLE = (
    f"<style>{sheet.text_rules(theme.INK, theme.TEXT_COLOURS, '#333333')}"
    "@media (prefers-color-scheme: dark){"
    f"{sheet.text_rules(theme.INK, theme.TEXT_COLOURS, '#d0d0d0')}}}</style>"
)
