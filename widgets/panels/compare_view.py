"""How a comparison looks: one headline number and one figure; the rest behind “more”.

Drawn by whoever has the worker's turn, from traces and results. Knows nothing about runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from minserve.hardware import DEVICES, DeviceSpec
from minserve.trace import RunTrace
from widgets import theme
from widgets.figures import kv_bytes, latency, throughput
from widgets.figures.lab_figure import LabFigure
from widgets.figures.sides import Runs
from widgets.panels import views
from widgets.panels.metrics import Metric
from widgets.panels.recording import Recording
from widgets.panels.result import CompareResult
from widgets.panels.verdict import RULE

FIGURES: dict[str, tuple[str, Callable[[Runs], LabFigure]]] = {
    "throughput": ("Output tokens per second", throughput),
    "latency": ("Latency distributions", latency),
    "kv_bytes": ("KV bytes reserved, allocated, used", kv_bytes),
}
COUNTED = {"kv_bytes"}
"""What such a figure shows is the same on every device."""


class CompareView:
    """The results of a Compare panel."""

    def __init__(self, headline: Metric, figure: str, gpu: str) -> None:
        if figure not in FIGURES:
            raise ValueError(f"figure={figure!r}: expected one of {', '.join(FIGURES)}")
        self._headline = headline
        self._result: CompareResult | None = None
        self.headline = views.html()
        self.agreement = views.html()
        self.recording = views.html()
        self.figures = {name: views.FigureView() for name in FIGURES}
        self._first = figure
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
        behind = {
            FIGURES[name][0]: view.widget for name, view in self.figures.items() if name != figure
        }
        behind |= {
            "All numbers, with their spread": self.numbers,
            "Counted: steps, arithmetic, bytes": self.counted,
            "On a modelled GPU": widgets.VBox([self.gpu, self.modelled]),
        }
        self.more = views.Accordion(tuple(behind.values()), tuple(behind))
        label = views.html("<b>More</b>")
        self._rest = widgets.VBox([label, self.more])
        self._hidden = [name for name in FIGURES if name != figure]
        self._stale: set[str] = set()
        self._lock = threading.Lock()
        self.more.observe(lambda change: self._draw_opened(), "selected_index")
        self.widget = widgets.VBox(
            [
                self.headline,
                self.agreement,
                self.figures[figure].widget,
                self.recording,
                self._rest,
            ]
        )

    def draw_live(self, traces: Mapping[str, RunTrace]) -> None:
        """Draw what the runs have told so far: the figures that can be seen, and no verdict."""
        self._result = None
        self.agreement.value = self.recording.value = ""
        parts = []
        for name, trace in traces.items():
            value = self._headline.read(trace)
            if value is not None:
                parts.append(f"{name} {self._headline.show(value)}")
        text = f"{self._headline.label}, so far (live; the quoted numbers come next, undrawn)"
        self.headline.value = views.headline(" · ".join(parts), text, 18)
        for name in (self._first, *self._opened()):
            self._draw_figure(name, traces)

    def draw(self, result: CompareResult) -> None:
        """Draw the quoted numbers and the final figures."""
        verdict = result.verdict
        value = theme.format_ratio(verdict.ratio.median)
        if verdict.outcome == "none":
            # The median of pairs that disagree is no number to print large.
            value = "No difference detectable"
        self.headline.value = views.headline(value, result.sentence() + ".")
        kind: views.Kind = {True: "good", False: "bad", None: "info"}[result.agreement.held]
        self.agreement.value = views.sentence(result.agreement.sentence, kind)
        self.numbers.value = _numbers(result)
        self.counted.value = _counts(result)
        recording = result.recording
        self.recording.value = (
            "" if recording is None else views.sentence(recording.sentence, "info")
        )
        self._draw_figure(self._first, result.traces, recording)
        with self._lock:
            self._result, self._stale = result, set(self._hidden)
        self._draw_opened()
        self._model()

    def _opened(self) -> list[str]:
        """The figure behind “more” that the reader has opened, if any."""
        place = self.more.selected_index
        return self._hidden[place : place + 1] if place is not None else []

    def _draw_opened(self) -> None:
        # Most readers open none: a plot costs a tenth of a second and some tens of kilobytes.
        with self._lock:
            # While a run is drawn live, its thread is the one writer and looks for itself.
            for name in self._opened() if self._result is not None else ():
                if name in self._stale:
                    self._stale.discard(name)
                    self._draw_figure(name, self._result.traces, self._result.recording)

    def _draw_figure(
        self, name: str, traces: Mapping[str, RunTrace], recording: Recording | None = None
    ) -> None:
        if any(trace.totals.steps for trace in traces.values()):
            runs: Runs = traces
            if recording is not None and name not in COUNTED:
                runs = recording.beside(traces)
            self.figures[name].draw(FIGURES[name][1](runs))

    def _model(self) -> None:
        if self._result is not None:
            self.modelled.value = _modelled(self._result, DEVICES[self.gpu.value])


def _numbers(result: CompareResult) -> str:
    rows = []
    for measured in result.metrics.values():
        metric, ratio = measured.metric, measured.verdict.ratio
        row: dict[str, Any] = {"quantity": metric.label}
        for name, values in measured.values.items():
            ordered = sorted(values)
            row[name] = metric.show(ordered[len(ordered) // 2])
        row["ratio"] = theme.format_ratio(ratio.median)
        row["smallest to largest"] = (
            f"{theme.format_ratio(ratio.min)} to {theme.format_ratio(ratio.max)}"
        )
        word = {"better": metric.words[0], "worse": metric.words[1], "none": "none detectable"}
        row["verdict"] = word[measured.verdict.outcome]
        rows.append(row)
    rate = "" if result.rate_per_s is None else f" at {result.rate_per_s:.3g} requests/s"
    how = "on the virtual clock" if result.provenance == "modelled" else "run without drawing"
    rounds = theme.format_count(result.rounds, "round")
    rule = "" if result.provenance == "modelled" else f" {RULE}"
    return views.table(rows, f"{rounds}{rate}, {how}, sides taking turns.{rule}")


def _counts(result: CompareResult) -> str:
    counts = {name: each.words() for name, each in result.counts.items()}
    labels = next(iter(counts.values()))
    rows = [
        {"counted": label} | {name: words[label] for name, words in counts.items()}
        for label in labels
    ]
    return views.table(rows, "Counted by the engine in the round shown, not measured.")


def _modelled(result: CompareResult, device: DeviceSpec) -> str:
    rows: list[dict[str, Any]] = []
    dtype = str(next(iter(result.traces.values())).header.config.get("dtype", "float32"))
    note = (
        f"Modelled: the least time these same steps could take on a {device.name} in {dtype} "
        f"(roofline; {device.source}). A bound, not a prediction."
    )
    try:
        seconds = result.modelled_s(device, dtype)
    except ValueError as error:
        return views.sentence(f"{error}. Choose another GPU.", "info")
    for name, bound in seconds.items():
        measured = result.traces[name].totals.busy_s
        rows.append(
            {
                "side": name,
                f"{device.name}, modelled": theme.format_seconds(bound),
                "here": theme.format_seconds(measured),
            }
        )
    first, second = seconds.values()
    if first > 0:
        rows.append(
            {"side": "ratio", f"{device.name}, modelled": theme.format_ratio(second / first)}
        )
    for name, trace in result.virtual.items():
        rows.append(
            {
                "side": f"{name}, virtual clock ({trace.header.device})",
                f"{device.name}, modelled": "",
                "here": theme.format_seconds(trace.totals.duration_s),
            }
        )
    return views.table(rows, note)
