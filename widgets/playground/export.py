"""A run of the playground as files: JSON, CSV, and the strips as PNG.

The files hold the code, so that the comparison can be restored from one. PNG is made by plotly
in the page; without a page kaleido makes it, where it is installed. Knows nothing about runs.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from minserve.bench.common import versions
from minserve.bench.compare.code import encode
from minserve.bench.compare.words import command_line
from widgets import theme
from widgets.figures.lab_figure import LabFigure
from widgets.figures.strips import strips
from widgets.metrics import METRICS
from widgets.panels.comparison.result import Measured
from widgets.panels.comparison.verdict import RULE
from widgets.playground.result import PlayResult

COLUMNS = ("side", "quantity", "round", "value", "found by", "verdict against the base")


def to_json(result: PlayResult) -> str:
    """Everything that was found, and what it takes to run it again."""
    setup = result.setup
    data: dict[str, Any] = {
        "playground": 1,
        "code": encode(setup),
        "command": command_line(setup),
        "clock": setup.clock,
        "device_modelled": setup.gpu.device.name if result.modelled else None,
        "model": setup.model if setup.model.startswith("zoo/") or setup.shape else "own",
        "workload": result.workload,
        "requests_per_s": result.rate_per_s,
        "versions": versions(),
        "rule": RULE,
        "sides": {name: _side(result, name) for name in result.runs},
        "cut": result.cut_sentences(),
        "verdicts": {
            name: {key: _verdict(each) for key, each in pair.metrics.items()}
            for name, pair in result.pairs.items()
        },
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _side(result: PlayResult, name: str) -> dict[str, Any]:
    counts = result.counts[name]
    return {
        "changes": dict(result.setup.changes(name)),
        "settled": list(result.notes[name]),
        "counted": dict(vars(counts)),
        "values": {
            key: [metric.read(run.trace) for run in result.runs[name]]
            for key, metric in METRICS.items()
        },
    }


def _verdict(measured: Measured) -> dict[str, Any]:
    verdict = measured.verdict
    return {
        "outcome": verdict.outcome,
        "in words": measured.short,
        "ratio": {"min": verdict.ratio.min, "median": verdict.ratio.median,
                  "max": verdict.ratio.max},
        "found by": measured.provenance,
    }  # fmt: skip


def to_csv(result: PlayResult) -> str:
    """One row for each side, quantity and round."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(result))
    return text.getvalue()


def _rows(result: PlayResult) -> Iterator[tuple[Any, ...]]:
    for name, runs in result.runs.items():
        pair = result.pairs.get(name)
        for key, metric in METRICS.items():
            found = "counted" if metric.counted else "modelled" if result.modelled else "measured"
            verdict = pair.metrics[key].short if pair and key in pair.metrics else ""
            for number, run in enumerate(runs, start=1):
                value = metric.read(run.trace)
                if value is not None:
                    yield name, key, number, value, found, verdict


def figure_of(result: PlayResult) -> LabFigure:
    """The strips of all sides. Raises ValueError where no side ran to its end."""
    if not result.runs:
        raise ValueError("no side ran to its end, so there is no figure to export")
    return strips(result.traces, METRICS[result.setup.headline])


def title_of(result: PlayResult, sides: Iterable[str]) -> str:
    """What a figure of these sides shows, in one line: it travels without its page."""
    label = METRICS[result.setup.headline].label
    return f"{label[:1].upper()}{label[1:]}: {', '.join(sides)}; {result.workload}"


def picture_of(result: PlayResult) -> LabFigure:
    """The strips with a title above, and below where the numbers come from.

    Raises ValueError where no side ran to its end.
    """
    drawn = figure_of(result)
    figure = go.Figure(drawn.figure)
    title = textwrap.wrap(title_of(result, result.traces), 80)
    source = textwrap.wrap(drawn.caption, 110)
    above, below = 20 * len(title) + 14, 15 * len(source) + 20
    margin, height = figure.layout.margin, figure.layout.height
    for lines, size, place in (
        (title, 15, {"y": 1, "yanchor": "bottom", "yshift": margin.t}),
        (source, 11, {"y": 0, "yanchor": "top", "yshift": -margin.b}),
    ):
        figure.add_annotation(
            text="<br>".join(map(escape, lines)), align="left", showarrow=False,
            font={"size": size, "color": "#333333"}, xref="paper", yref="paper", x=0,
            xanchor="left", xshift=-30, **place,
        )  # fmt: skip
    figure.update_layout(
        margin={"t": margin.t + above, "b": margin.b + below}, height=height + above + below
    )
    return replace(drawn, figure=figure)


def save(result: PlayResult, path: str | Path) -> Path:
    """Write a .json, .csv or .png file. Raises ValueError for another name, and RuntimeError where
    a PNG cannot be made here, saying what to do."""
    path = Path(path)
    if path.suffix == ".png":
        try:
            content = picture_of(result).png()
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}. Or press “PNG” in the panel: the page itself can draw it"
            ) from error
        path.write_bytes(content)
    elif path.suffix in (".json", ".csv"):
        text = to_json(result) if path.suffix == ".json" else to_csv(result)
        path.write_text(text, encoding="utf-8")
    else:
        raise ValueError(f"save({path.name!r}): expected a name that ends in .json, .csv or .png")
    return path


class PngButton(anywidget.AnyWidget):
    """A button that saves the panel's first plot as PNG: the page draws it, the kernel is not
    asked."""

    _esm = Path(__file__).with_name("png.js")
    name = traitlets.Unicode("playground.png").tag(sync=True)
    heading = traitlets.Unicode().tag(sync=True)
    source = traitlets.Unicode().tag(sync=True)


class Exports:
    """Links to the files, and the PNG button."""

    def __init__(self) -> None:
        self.links = widgets.HTML()
        self.widget = widgets.HBox([self.links])

    def offer(self, result: PlayResult) -> None:
        """Make the files of this result; they are in the page, and need no kernel."""
        made = {"json": to_json(result), "csv": to_csv(result)}
        self.links.value = "Save: " + " · ".join(
            f'<a download="playground.{kind}" href="data:{mime};base64,'
            f'{base64.b64encode(made[kind].encode()).decode()}">{kind.upper()}</a>'
            for kind, mime in (("json", "application/json"), ("csv", "text/csv"))
        )

    def picture(self, heading: str, source: str) -> None:
        """Say what stands above and below the strips that are shown, once they are a picture.

        In a new button: a page that was busy when the old one was made may hear of no change.
        """
        if theme.headless():
            return
        old = self.widget.children[1:]
        self.widget.children = (self.links, PngButton(heading=heading, source=source))
        for each in old:
            each.close()
