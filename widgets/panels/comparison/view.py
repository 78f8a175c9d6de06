"""How a comparison looks: the verdict, strips of its quantity and of memory; more on demand.

Drawn by the thread that has the worker's turn, from traces and results. Knows nothing about runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from minserve.hardware import DEVICES, DeviceSpec
from minserve.inputs.wording import with_article
from minserve.trace import RunTrace
from widgets import theme
from widgets.figures import kv_bytes, latency, throughput
from widgets.figures.lab_figure import LabFigure
from widgets.figures.sides import Runs
from widgets.figures.strips import strips
from widgets.metrics import Metric
from widgets.panels import views
from widgets.panels.comparison.recording import Recording
from widgets.panels.comparison.result import CompareResult, Counts, Measured
from widgets.panels.comparison.verdict import LEAST_ROUNDS, RULE

MORE: dict[str, tuple[str, Callable[[Runs], LabFigure]]] = {
    "latency": ("Latency distributions", latency),
    "throughput": ("Output tokens per second", throughput),
    "kv_bytes": ("KV bytes reserved, allocated, used", kv_bytes),
}
"""Figures behind “more”, drawn when they are opened."""
COUNTED = {"kv_bytes"}
"""What such a figure shows is the same on every device."""
_LIVE = "Drawn live; the quoted numbers come from rounds that draw nothing."


class CompareView:
    """The results of a Compare panel."""

    def __init__(self, headline: Metric, gpu: str) -> None:
        self._headline = headline
        self._result: CompareResult | None = None
        self.headline = views.html()
        self.agreement = views.html()
        self.recording = views.html()
        self.strips = views.FigureView()
        self.figures = {name: views.FigureView() for name in MORE}
        self.numbers = views.html()
        self.counted = views.html()
        self.modelled = views.html()
        self.gpu = widgets.Dropdown(
            options=[name for name, spec in DEVICES.items() if spec.memory_bytes_per_s],
            value=gpu,
            description="Modelled GPU",
            style={"description_width": "initial"},
        )
        self.gpu.observe(lambda change: self._model(), "value")
        behind = {MORE[name][0]: view.widget for name, view in self.figures.items()}
        behind |= {
            "All numbers, with their spread": self.numbers,
            "Counted: steps, arithmetic, bytes": self.counted,
            "On a modelled GPU": widgets.VBox([self.gpu, self.modelled]),
        }
        self.more = views.Accordion(tuple(behind.values()), tuple(behind))
        label = views.html("<b>More</b>")
        self._rest = widgets.VBox([label, self.more])
        self._names = list(MORE)
        self._stale: set[str] = set()
        self._lock = threading.Lock()
        self.more.observe(lambda change: self._draw_opened(), "selected_index")
        self.widget = widgets.VBox(
            [self.headline, self.agreement, self.strips.widget, self.recording, self._rest]
        )

    def draw_live(self, traces: Mapping[str, RunTrace]) -> None:
        """Draw what the runs have told so far: the figures that can be seen, and no sentence."""
        self._result = None
        self.agreement.value = self.recording.value = ""
        self.headline.value = views.sentence(_LIVE, "info")
        if any(trace.totals.steps for trace in traces.values()):
            self.strips.draw(strips(traces, self._headline, complete=False))
        for name in self._opened():
            self._draw_more(name, traces)

    def stopped(self) -> None:
        """Quote nothing from a run that did not end. What was drawn of it stays."""
        self.headline.value = self.agreement.value = self.recording.value = ""
        self.numbers.value = self.counted.value = self.modelled.value = ""

    def draw(self, result: CompareResult) -> None:
        """Draw the quoted numbers and the final figures."""
        self.headline.value = verdict_html(result)
        kind: views.Kind = {True: "good", False: "bad", None: "info"}[result.agreement.held]
        self.agreement.value = views.sentence(result.agreement.sentence, kind)
        self.numbers.value = numbers_html(result)
        self.counted.value = counts_html(result.counts)
        recording = result.recording
        self.recording.value = (
            "" if recording is None else views.sentence(recording.sentence, "info")
        )
        runs: Runs = result.traces if recording is None else recording.beside(result.traces)
        self.strips.draw(strips(runs, self._headline), anew=True)
        with self._lock:
            self._result, self._stale = result, set(self._names)
        self._draw_opened()
        self._model()

    def _opened(self) -> list[str]:
        """The figure behind “more” that the reader has opened, if any."""
        place = self.more.selected_index
        return self._names[place : place + 1] if place is not None else []

    def _draw_opened(self) -> None:
        # Most readers open none: a plot costs a tenth of a second and some tens of kilobytes.
        with self._lock:
            # While a run is drawn live, its thread is the one writer and looks for itself.
            for name in self._opened() if self._result is not None else ():
                if name in self._stale:
                    self._stale.discard(name)
                    self._draw_more(name, self._result.traces, self._result.recording)

    def _draw_more(
        self, name: str, traces: Mapping[str, RunTrace], recording: Recording | None = None
    ) -> None:
        if any(trace.totals.steps for trace in traces.values()):
            runs: Runs = traces
            if recording is not None and name not in COUNTED:
                runs = recording.beside(traces)
            self.figures[name].draw(MORE[name][1](runs))

    def _model(self) -> None:
        if self._result is not None:
            self.modelled.value = _modelled(self._result, DEVICES[self.gpu.value])


def verdict_html(result: CompareResult) -> str:
    """The verdict, large; where the machine was too busy for one, what is certain all the same."""
    found, second = result.metrics[result.headline], result.sides[1]
    said = found.values_sentence()
    values = f"{_capital(said)}."
    if found.verdict.decided:
        value = _capital(found.short)
        if found.verdict.outcome in ("better", "worse"):
            value = f"“{second}”: {found.short}"
        return views.headline(value, values)
    why, certain = undecided_because(result), _certain_facts(result)
    if not certain:
        return views.headline("No verdict", values) + views.sentence(why, "info")
    (how, lead), *others = certain
    text = views.headline(f"“{second}”: {lead}", f"The same on any machine, because it is {how}.")
    if others:
        rest = "; ".join(f"{fact}, {way}" for way, fact in others)
        text += views.sentence(f"Also the same on any machine: {rest}.")
    return text + views.sentence(
        f"{_capital(found.metric.label)}: no verdict. {why} {values}", "info"
    )


def brief_verdict_html(result: CompareResult) -> str:
    """The verdict of one of several variants, in two lines, so that the figure follows soon.

    Why there is none, `undecided_because` says: once for all variants that have the same reason.
    """
    found, second = result.metrics[result.headline], result.sides[1]
    changed = ", ".join(f"{path} = {theirs}" for path, (_, theirs) in result.changed.items())
    value, said = found.short, found.values_sentence()
    if not found.verdict.decided:
        facts = [f"{fact}, {how}" for how, fact in _certain_facts(result)]
        value, *others = facts or ["no verdict"]
        undecided = f"{said}: no verdict" if facts else said
        said = "; ".join([*others, undecided])
    return (
        '<div role="status" style="margin:.3rem 0;max-width:60rem;line-height:1.35">'
        f"<b>{escape(second)}</b> ({escape(changed or 'no field is changed')}): "
        f'<span style="font-size:17px;font-weight:600">{escape(value)}</span>'
        f"<br>{escape(_capital(said))}.</div>"
    )


def undecided_because(result: CompareResult) -> str:
    """Why the headline has no verdict; "" where it has one."""
    verdict = result.metrics[result.headline].verdict
    if verdict.decided:
        return ""
    few = len(verdict.ratio.values) < LEAST_ROUNDS
    why = (
        f"Fewer than {LEAST_ROUNDS} rounds were run."
        if few
        else "The rounds disagree: your machine is busy. Run again."
    )
    counts = [one for one in result.metrics.values() if one.metric.counted]
    if not result.certain and counts and all(one.verdict.exact for one in counts):
        why += " What the engine counts is equal on both sides."
    return why


def _certain_facts(result: CompareResult) -> list[tuple[str, str]]:
    """(how it was found, the fact) of what is the same on any machine."""
    return [(each.provenance, _certain(result, each)) for each in result.certain[:3]]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _certain(result: CompareResult, measured: Measured) -> str:
    """A factor and its quantity; a modelled one with the model and device it is of."""
    of = measured.metric.label
    if measured.provenance == "modelled" and result.virtual:
        header = next(iter(result.virtual.values())).header
        of += f" of {header.model} on {with_article(header.device)}"
    return f"{measured.short} ({of})"


def numbers_html(result: CompareResult) -> str:
    """Every quantity of both sides with its verdict and spread, as a table."""
    rows = []
    for measured in result.metrics.values():
        row: dict[str, Any] = {"quantity": measured.metric.label}
        row |= {name: measured.metric.show(value) for name, value in measured.quoted.items()}
        row |= {"verdict": measured.short, "from round to round": measured.spread or "equal"}
        row["found by"] = {"counted": "counting", "modelled": "a model"}.get(
            measured.provenance, "measuring"
        )
        rows.append(row)
    rate = "" if result.rate_per_s is None else f" at {result.rate_per_s:.3g} requests/s"
    how = "on the virtual clock" if result.provenance == "modelled" else "run without drawing"
    rounds = theme.format_count(result.rounds, "round")
    rule = "" if result.provenance == "modelled" else f" {RULE}"
    return views.table(rows, f"{rounds}{rate}, {how}, sides taking turns.{rule}")


def counts_html(found: Mapping[str, Counts]) -> str:
    """What the engine counted for each side, as a table."""
    counts = {name: each.words() for name, each in found.items()}
    labels = next(iter(counts.values()))
    rows = [
        {"counted": label} | {name: words[label] for name, words in counts.items()}
        for label in labels
    ]
    return views.table(rows, "Counted by the engine in the round shown, not measured.")


def _modelled(result: CompareResult, device: DeviceSpec) -> str:
    """The roofline of the same steps on another device, beside the run's own time."""
    dtype = str(next(iter(result.traces.values())).header.config.get("dtype", "float32"))
    note = (
        "Modelled: the least time these same steps could take on "
        f"{with_article(device.name)} in {dtype} (roofline; {device.source}). "
        "A bound, not a prediction."
    )
    try:
        seconds = result.modelled_s(device, dtype)
    except ValueError as error:
        return views.sentence(f"{error}. Choose another GPU.", "info")
    bound = f"{device.name}, least time (modelled)"
    # The run's own time was itself modelled where the panel is on the virtual clock.
    own = f"this panel's runs ({result.provenance})"
    rows: list[dict[str, Any]] = [
        {
            "side": name,
            bound: theme.format_seconds(least),
            own: theme.format_seconds(result.traces[name].totals.busy_s),
        }
        for name, least in seconds.items()
    ]
    for name, trace in result.virtual.items():
        header = trace.header
        rows.append(
            {
                "side": f"{name}: {header.model} on the virtual clock of "
                f"{with_article(header.device)}",
                bound: "",
                own: f"{theme.format_seconds(trace.totals.duration_s)} (modelled)",
            }
        )
    first, second = seconds.values()
    if first > 0 and second > 0:
        faster = theme.format_ratio(max(first / second, second / first))
        word = "faster" if second < first else "slower"
        note += f" There “{result.sides[1]}” is {faster} {word}."
    return views.table(rows, note)
