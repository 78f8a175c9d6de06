"""Provenance: what was modelled is named, and a number says how it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator

from labs.rules.comparisons import ran
from labs.running import ChapterRun

from widgets.figures.lab_figure import LabFigure
from widgets.panels import Compare, Sweep
from widgets.provenance import Provenance

TIMES = re.compile(r"\d\s?(s|ms|µs|tokens/s)\b|\d\s?x\b")
HOW = ("measured", "counted", "modelled", "recorded", "computed")


def a_modelled_shape_is_named(run: ChapterRun) -> Iterator[str]:
    """A panel modelled for an 8B says so, and never names the lab's own model."""
    for panel in [*run.of(Compare), *run.of(Sweep)]:
        shape = panel.shape
        if shape is None or panel.last is None:
            continue
        modelled = panel.last.virtual if isinstance(panel, Compare) else {}
        headers = [trace.header for trace in modelled.values()]
        if panel.cost is not None:
            last = panel.last
            headers += (
                [trace.header for trace in last.traces.values()]
                if isinstance(panel, Compare)
                else list(last.headers.values())
            )
        for header in headers:
            if header.model != shape.name:
                yield f"“{panel.title}” is modelled for {shape.name} and says {header.model}"


def only_the_switch_is_a_difference(run: ChapterRun) -> Iterator[str]:
    """Fields that follow from the switch are not listed as second differences."""
    for panel in ran(run, Compare):
        result = panel.result
        headers = {name: trace.header for name, trace in result.traces.items()}
        listed = {path for side in Provenance.of(headers).differences.values() for path in side}
        for path in sorted(listed - set(result.changed)):
            yield f"“{panel.title}” lists {path}, which only follows from its switch"


def numbers_say_how_they_were_found(run: ChapterRun) -> Iterator[str]:
    """An output with seconds or factors says measured, counted, modelled or recorded."""
    for number, text in enumerate(run.outputs, start=1):
        match = TIMES.search(text)
        if match and not any(word in text.lower() for word in HOW):
            start = max(0, match.start() - 40)
            yield f"[{number}] does not say how this was found: “{text[start : match.end()]}”"
    for figure in run.of(LabFigure):
        words = f"{figure.takeaway} {figure.caption}".lower()
        if TIMES.search(figure.takeaway) and not any(word in words for word in HOW):
            yield f"a figure does not say how its numbers were found: “{figure.takeaway}”"
