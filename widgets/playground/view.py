"""How a run of the playground looks: a verdict for each variant, the strips, what was counted.

Made of the parts of a chapter's comparison. Drawn by the thread that has the worker's turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import ipywidgets as widgets

from minserve.bench.compare.setup import Setup
from minserve.trace import RunTrace
from widgets.figures.strips import strips
from widgets.metrics import METRICS
from widgets.panels import views
from widgets.panels.comparison.view import (
    MORE,
    brief_verdict_html,
    counts_html,
    numbers_html,
    undecided_because,
    verdict_html,
)
from widgets.playground.export import Exports, title_of
from widgets.playground.result import PlayResult

ALL = "all sides"
_LIVE = "Drawn live; the quoted numbers come from rounds that draw nothing."
_LIVE_VIRTUAL = "Drawn live, on the virtual clock."
_UNFINISHED = "Drawn of a run that was cut: it has no values."


class PlayView:
    """The results of the playground."""

    def __init__(self) -> None:
        self._result: PlayResult | None = None
        self._stale: set[str] = set()
        self.verdicts = views.html()
        self.shown = widgets.Dropdown(
            options=[ALL], value=ALL, description="Show",
            style={"description_width": "initial"},
        )  # fmt: skip
        self.shown.layout.display = "none"
        self.shown.observe(lambda change: self._draw_strips(), "value")
        self.strips = views.FigureView()
        self.counted = views.html()
        self.figures = {name: views.FigureView() for name in MORE}
        self.numbers = views.html()
        self.texts = views.html()
        self.exports = Exports()
        behind = {MORE[name][0]: view.widget for name, view in self.figures.items()}
        behind |= {
            "All numbers, with their spread": self.numbers,
            "What was written": self.texts,
        }
        self.more = views.Accordion(tuple(behind.values()), tuple(behind))
        self.more.observe(lambda change: self._draw_opened(), "selected_index")
        self.rest = widgets.VBox([views.html("<b>More</b>"), self.more, self.exports.widget])
        self.rest.layout.display = "none"
        self.widget = widgets.VBox(
            [self.verdicts, self.shown, self.strips.widget, self.counted, self.rest]
        )

    def draw_live(self, setup: Setup, traces: Mapping[str, RunTrace]) -> None:
        """Draw what the runs have told so far, and no number."""
        self._result = None
        self.counted.value = ""
        self.shown.layout.display = self.rest.layout.display = "none"
        text = _LIVE_VIRTUAL if setup.clock == "virtual" else _LIVE
        self.verdicts.value = views.sentence(text, "info")
        if any(trace.totals.steps for trace in traces.values()):
            self.strips.draw(strips(dict(traces), METRICS[setup.headline], complete=False))

    def stopped(self) -> None:
        """Quote nothing from a run that did not end. What was drawn of it stays."""
        self._result = None
        self.verdicts.value = self.counted.value = self.numbers.value = self.texts.value = ""
        self.shown.layout.display = self.rest.layout.display = "none"

    def draw(self, result: PlayResult) -> None:
        """Draw the quoted numbers and the final figures."""
        self._result = result
        self.verdicts.value = _verdicts(result)
        self.counted.value = counts_html(result.counts) if result.runs else ""
        self.numbers.value = "".join(map(numbers_html, result.pairs.values())) or views.sentence(
            "There is nothing to compare: no variant ran to its end beside the base.", "info"
        )
        self.texts.value = _texts(result)
        self.shown.options = [ALL, *_pair_names(result)] if len(result.pairs) > 1 else [ALL]
        self.shown.layout.display = "" if len(result.pairs) > 1 else "none"
        self.rest.layout.display = "" if result.runs else "none"
        self._draw_strips(anew=True)
        self._stale = set(MORE)
        self._draw_opened()
        self.exports.offer(result)

    def _draw_strips(self, anew: bool = False) -> None:
        result = self._result
        if result is None:
            return
        chosen = dict(zip(_pair_names(result), result.pairs.values(), strict=True))
        pair = chosen.get(self.shown.value)
        traces = dict(pair.traces) if pair else result.traces
        metric = METRICS[result.setup.headline]
        if traces:
            figure = strips(traces, metric)
            self.strips.draw(figure, anew=anew)
            self.exports.picture(title_of(result, traces), figure.caption)
        elif drawn := {n: t for n, t in result.cut.items() if t.totals.steps}:
            self.strips.draw(strips(drawn, metric, complete=False), anew=anew)

    def _draw_opened(self) -> None:
        place = self.more.selected_index
        names = list(MORE)
        if self._result is None or place is None or place >= len(names):
            return
        name = names[place]
        if name in self._stale and self._result.runs:
            self._stale.discard(name)
            self.figures[name].draw(MORE[name][1](self._result.traces))


def _pair_names(result: PlayResult) -> list[str]:
    return [f"“{result.setup.base_name}” and “{name}”" for name in result.pairs]


def _verdicts(result: PlayResult) -> str:
    parts = [views.sentence(text, "problem") for text in result.cut_sentences()]
    if result.cut and not result.runs:
        parts.append(views.sentence(_UNFINISHED, "info"))
    if len(result.pairs) > 1:
        parts += [brief_verdict_html(pair) for pair in result.pairs.values()]
        parts += _once(
            (undecided_because(pair), name, "info") for name, pair in result.pairs.items()
        )
    for name, pair in result.pairs.items() if len(result.pairs) == 1 else ():
        changed = ", ".join(f"{path} = {theirs}" for path, (_, theirs) in pair.changed.items())
        parts.append(f"<p><b>{escape(name)}</b>: {escape(changed or 'no field is changed')}</p>")
        parts.append(verdict_html(pair))
    parts += _once(
        (pair.agreement.sentence, name, "good" if pair.agreement.held else "bad")
        for name, pair in result.pairs.items()
        if pair.agreement.held is not None
    )
    if len(result.pairs) > 1 and not result.modelled:
        first = next(iter(result.pairs))
        note = (
            f"With all sides on the strips, the base is drawn in the round that “{first}” is "
            "quoted from."
        )
        parts.append(views.sentence(note, "info"))
    if not result.setup.variants:
        parts.append(views.sentence("There is no variant, so nothing is compared.", "info"))
    return "".join(parts)


def _once(said: Iterable[tuple[str, str, views.Kind]]) -> list[str]:
    """Each (sentence, variant, kind) as HTML: what is said of all variants once, and what is said
    of some with their names."""
    of: dict[tuple[str, views.Kind], list[str]] = {}
    for text, name, kind in said:
        of.setdefault((text, kind), []).append(f"“{name}”")
    alone = len(of) == 1
    return [
        views.sentence(text if alone else f"{', '.join(names)}: {text}", kind)
        for (text, kind), names in of.items()
        if text
    ]


def _texts(result: PlayResult) -> str:
    if not result.texts:
        return views.sentence(
            "Texts are shown for your own prompts on this machine's clock: the virtual clock "
            "computes no tokens.",
            "info",
        )
    rows = [
        {"prompt": prompt} | {name: texts[number] for name, texts in result.texts.items()}
        for number, prompt in enumerate(result.setup.workload.prompts)
        if all(number < len(texts) for texts in result.texts.values())
    ]
    return views.table(rows)
