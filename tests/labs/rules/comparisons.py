"""Comparisons: the flip, its figure, its verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from labs.running import ChapterRun

from minserve.bench.compare.code import decode
from widgets.panels import Compare, Pick, Predict, Tick
from widgets.panels.base import Panel
from widgets.panels.comparison.verdict import LEAST_ROUNDS
from widgets.panels.controls import Control
from widgets.panels.views import FigureView

T = TypeVar("T", bound=Panel)
BELOW_ONE = re.compile(r"(?<![\d.,])0\.\d+\s?(x|times)\b")


def ran(run: ChapterRun, kind: type[T]) -> list[T]:
    """The chapter's panels of a kind that have a result."""
    return [panel for panel in run.of(kind) if panel.last is not None]


def flip_of(run: ChapterRun) -> Compare | None:
    """The comparison that the reader predicts first; chapter 00 asks for an estimate instead."""
    for predict in run.of(Predict):
        if isinstance(predict.compare, Compare):
            return predict.compare
    return next(iter(run.of(Compare)), None)


def the_flip_is_one_field_and_gives_a_verdict(run: ChapterRun) -> Iterator[str]:
    """One field of the configuration, enough rounds, and a latency and a memory to predict."""
    flip = flip_of(run)
    if flip is None:
        yield "there is no comparison"
        return
    result = flip.result
    if len(result.changed) != 1:
        yield f"the flip changes {sorted(result.changed)}: expected one field"
    if result.provenance == "measured" and result.rounds < LEAST_ROUNDS:
        yield f"the flip runs {result.rounds} rounds: no verdict on any machine"
    for predict in run.of(Predict):
        kinds = {
            predict.compare.result.metrics[form.question.metric].metric.counted
            for form in predict.forms
        }
        if kinds != {True, False}:
            yield f"{predict.key} asks about one kind only: expected a time and a count"


def the_figure_draws_the_headline(run: ChapterRun) -> Iterator[str]:
    """The values in the sentence stand in the figure, and the score reads the same verdict."""
    for panel in ran(run, Compare):
        result = panel.result
        found = result.metrics[result.headline]
        figure = panel.view.strips.shown
        if figure is None:
            yield f"“{panel.title}” shows no strips"
            continue
        drawn = " ".join(note.text or "" for note in figure.figure.layout.annotations)
        for name, value in found.quoted.items():
            said = found.metric.show(value)
            if said not in drawn:
                yield f"“{panel.title}”: {said} of “{name}” is quoted and not drawn"
            if said not in panel.view.headline.value:
                yield f"“{panel.title}”: {said} of “{name}” is drawn and not said"


def factors_are_above_one(run: ChapterRun) -> Iterator[str]:
    """ "7.4x faster", never "0.135x"."""
    texts = list(run.outputs)
    for panel in ran(run, Compare):
        texts += [panel.view.headline.value, panel.view.numbers.value]
        texts += [each.sentence() for each in panel.result.metrics.values()]
    for text in texts:
        for match in BELOW_ONE.finditer(text):
            start = max(0, match.start() - 40)
            yield f"a factor below 1: “{text[start : match.end()]}”"


def both_strips_are_open(run: ChapterRun) -> Iterator[str]:
    """Latency and memory stand in the panel itself, over the same seconds."""
    for panel in ran(run, Compare):
        view = panel.view
        if view.strips.widget not in view.widget.children:
            yield f"“{panel.title}”: the strips are folded away"
        yield from _two_strips(panel.title, view.strips)


def _two_strips(title: str, place: FigureView) -> Iterator[str]:
    if place.shown is None:
        yield f"“{title}” shows no strips"
        return
    layout = place.shown.figure.layout
    titles = " ".join(note.text or "" for note in layout.annotations)
    if "KV memory" not in titles:
        yield f"“{title}” draws no memory"
    if layout.xaxis.range != layout.xaxis2.range or layout.xaxis.range is None:
        yield f"“{title}”: the strips have different seconds"


def nothing_is_said_of_an_unfinished_run(run: ChapterRun) -> Iterator[str]:
    """While a comparison draws live, and after a stop, no number is quoted."""
    for panel in ran(run, Compare):
        view, result = panel.view, panel.result
        view.draw_live(result.traces)
        figure = view.strips.shown
        assert figure is not None
        if figure.takeaway or any(
            "<b>" in (n.text or "") for n in figure.figure.layout.annotations
        ):
            yield f"“{panel.title}” quotes values while it draws live"
        if re.search(r"\d", re.sub(r"<[^>]*>", "", view.headline.value)):
            yield f"“{panel.title}” says a number while it draws live"
        view.stopped()
        if view.headline.value or view.agreement.value:
            yield f"“{panel.title}” keeps a sentence after a stop"
        view.draw(result)


def a_moved_control_greys_the_results_out(run: ChapterRun) -> Iterator[str]:
    """Results of other settings than those in sight lose their colour, and get it back."""
    for panel in ran(run, Panel):
        for control in panel.controls.values():
            before = control.value
            control.value = _other(control)
            grey = panel.outcome.stale
            control.value = before
            # Said only now: who reads one sentence alone leaves the panel as it was.
            if not grey:
                yield f"“{panel.title}” shows old results in full colour after {control.name} moved"
            if panel.outcome.stale:
                yield f"“{panel.title}” stays grey after {control.name} moved back"


def _other(control: Control) -> Any:
    """Another value that the control can have."""
    spec, now = control.spec, control.value
    if isinstance(spec, Tick):
        return not now
    if isinstance(spec, Pick):
        return next(option for option in spec.options if option != now)
    return type(spec.low)(spec.low if now != spec.low else spec.high)


def it_opens_in_the_playground(run: ChapterRun) -> Iterator[str]:
    """Every comparison has a code that gives its sides, by name, and its requests, by length."""
    for panel in run.of(Compare):
        fold = panel.playground
        fold.widget.selected_index = None
        fold.widget.selected_index = 0
        if not fold.code.value:
            yield f"“{panel.title}” cannot be opened: {fold.words.value}"
            continue
        setup = decode(fold.code.value)
        if setup.names != panel.names:
            yield f"“{panel.title}” opens with the sides {setup.names}"
        for name, config in panel.configs().items():
            given = config.with_values({"device": "auto", "memory.disk_path": None})
            if setup.config(name) != given:
                yield f"“{panel.title}” opens with another configuration of “{name}”"
        lengths = [
            (len(each.prompt_token_ids), each.params.max_tokens)
            for each in panel.traffic().requests
        ]
        if [row[1:3] for row in setup.workload.rows] != lengths:
            yield f"“{panel.title}” opens with other requests"
        setup.check()
        setup.traffic()
