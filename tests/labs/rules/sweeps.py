"""Break it: the sweep turns what was flipped, and shows where it stops paying."""

from __future__ import annotations

from collections.abc import Iterator

from labs.rules.comparisons import flip_of, ran
from labs.running import ChapterRun

from widgets.panels import Sweep
from widgets.panels.sweeps.figure import sweep_figure


def the_sweep_turns_the_flipped_switch(run: ChapterRun) -> Iterator[str]:
    """The sides of a sweep differ in the flipped field and in nothing else."""
    flip = flip_of(run)
    flipped = set(flip.result.changed) if flip is not None else set()
    for panel in run.of(Sweep):
        if panel.switch is None:
            continue
        more = set(panel.switch) - flipped - {panel.knob}
        if more:
            yield f"“{panel.title}” also changes {sorted(more)}: the flip changes {sorted(flipped)}"


def a_crossover_is_marked(run: ChapterRun) -> Iterator[str]:
    """Threshold and crossover are drawn, ticks are plain numbers, and a chapter has a crossover."""
    crossed = 0
    for panel in ran(run, Sweep):
        result = panel.result
        figure = sweep_figure(result).figure
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            if axis.type == "log" and not axis.ticktext:
                yield f"“{panel.title}”: a logarithmic axis without decimal labels"
        if not result.is_ratio:
            continue
        lines = [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1]
        if result.threshold not in lines:
            yield f"“{panel.title}”: the threshold {result.threshold:g} is not drawn"
        marked = any(trace.name == "crossover" for trace in figure.data)
        if result.crossover is not None:
            crossed += 1
            if not marked:
                yield f"“{panel.title}”: its crossover is not marked"
    # Chapter 00 asks for one value at a slider's end, chapter 46 has a panel of its own.
    if not crossed and run.name[:2] not in ("00", "46"):
        yield "no sweep reaches the place where the switch stops paying"
