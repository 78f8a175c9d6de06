"""Roofline: how much of a step is arithmetic, how much bytes, how much neither.

Measured step times against what this machine reaches at best, and against a chosen GPU's data
sheet. Knows nothing about how the runs were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from minserve.hardware import DEVICES, Ceilings, DeviceSpec, machine_ceilings, roofline
from minserve.inputs.wording import with_article
from minserve.trace import RunTrace, StepTrace
from widgets import theme
from widgets.figures import roofline_chart, stage_shares
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.workers import Job

Source = RunTrace | Mapping[str, RunTrace] | Panel | Callable[[], RunTrace | Mapping[str, RunTrace]]


@dataclass(frozen=True)
class Shares:
    """Where the time of one kind of step went. Arithmetic and bytes may overlap; overhead is what
    neither explains."""

    side: str
    kind: str
    """"prefill" or "decode": what most of the step's tokens were."""
    steps: int
    measured_s: float
    arithmetic_s: float
    """At this machine's best matrix products."""
    bytes_s: float
    """At its best bandwidth for the working set."""
    bound_s: float
    """The larger of the two, step by step."""

    @property
    def overhead_s(self) -> float:
        """What the bound does not explain."""
        return max(0.0, self.measured_s - self.bound_s)

    @property
    def binds(self) -> str:
        """ "arithmetic", "bytes" or "overhead": the largest."""
        parts = {
            "overhead": self.overhead_s,
            "arithmetic": self.arithmetic_s,
            "bytes": self.bytes_s,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class RooflineResult:
    """Shares of every side and kind of step, and whose limits they were held against."""

    traces: Mapping[str, RunTrace]
    ceilings: Ceilings
    dtype: str
    shares: tuple[Shares, ...]

    def on(self, device: DeviceSpec) -> dict[tuple[str, str], str]:
        """(side, kind) -> what would bind on a GPU: "arithmetic" or "bytes".

        Raises ValueError where its data sheet says nothing about the number format.
        """
        found = {}
        for name, kind, steps in _kinds(self.traces):
            estimates = [roofline(step.work, device, self.dtype) for step in steps]
            compute = sum(estimate.compute_s for estimate in estimates)
            memory = sum(estimate.memory_s for estimate in estimates)
            found[name, kind] = "arithmetic" if compute >= memory else "bytes"
        return found

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine: the arithmetic intensity of each kind of step."""
        found = {}
        for name, kind, steps in _kinds(self.traces):
            flops, size = (sum(getattr(s.work, what) for s in steps) for what in ("flops", "bytes"))
            label = f"{name}: {kind}" if name else kind
            found[f"{label}, FLOPs per byte"] = round(flops / size, 3)
        return found


def split(traces: Mapping[str, RunTrace], ceilings: Ceilings, dtype: str) -> tuple[Shares, ...]:
    """The shares of every side and kind of step."""
    found = []
    for name, kind, steps in _kinds(traces):
        estimates = [roofline(step.work, ceilings, dtype) for step in steps]
        found.append(
            Shares(
                side=name,
                kind=kind,
                steps=len(steps),
                measured_s=sum(step.duration_s for step in steps),
                arithmetic_s=sum(estimate.compute_s for estimate in estimates),
                bytes_s=sum(estimate.memory_s for estimate in estimates),
                bound_s=sum(estimate.bound_s for estimate in estimates),
            )
        )
    return tuple(found)


def _kinds(traces: Mapping[str, RunTrace]) -> list[tuple[str, str, list[StepTrace]]]:
    found = []
    for name, trace in traces.items():
        kinds: dict[str, list[StepTrace]] = {"prefill": [], "decode": []}
        for step in trace.steps:
            kind = "prefill" if step.num_prefill_tokens > step.num_decode_tokens else "decode"
            kinds[kind].append(step)
        found += [(name, kind, steps) for kind, steps in kinds.items() if steps]
    return found


class Roofline(Panel):
    """Shares and roofs of runs: a trace, traces by name, a Compare panel, or a function for them.

    Measuring this machine takes some seconds once; then it is read from disk. `ceilings` brings
    them along.
    """

    def __init__(
        self,
        source: Source,
        *,
        gpu: str = "H100 SXM",
        ceilings: Ceilings | None = None,
        title: str = "What binds: arithmetic, bytes or overhead",
    ) -> None:
        super().__init__(title, run_label="Measure")
        self._source, self._ceilings = source, ceilings
        self.gpu = widgets.Dropdown(
            options=[name for name, spec in DEVICES.items() if spec.memory_bytes_per_s],
            value=gpu,
            description="Modelled GPU",
            style={"description_width": "initial"},
        )
        self.gpu.observe(lambda change: self._redraw(), "value")
        self.settings.children = (self.gpu,)
        self.table = views.html()
        self.chart, self.stages = views.FigureView(), views.FigureView()
        self.results.children = (self.table, self.chart.widget, self.stages.widget)

    def work(self, job: Job) -> RooflineResult:
        """Measure the machine, or remember it, and split the steps."""
        traces = self._traces()
        config = next(iter(traces.values())).header.config
        dtype, device = str(config.get("dtype", "float32")), str(config.get("device", "cpu"))
        ceilings = self._ceilings
        if ceilings is None:
            job.report(0.1, "Measuring what this machine reaches at best (once, some seconds).")
            ceilings = machine_ceilings(device, dtypes=(dtype,))
            self._ceilings = ceilings
        job.check()
        return RooflineResult(traces, ceilings, dtype, split(traces, ceilings, dtype))

    def show(self, result: RooflineResult) -> None:
        """Draw the roofs and the shares."""
        self._draw_chart(result)
        self.stages.draw(stage_shares(_named(result.traces)))

    def facts(self) -> dict[str, Any]:
        """`RooflineResult.facts` of the last run."""
        return self.result.facts()

    def _redraw(self) -> None:
        # While a run lasts its thread is the figures' one writer, and it will read the new choice.
        if self.last is not None and not self.worker.busy:
            self._draw_chart(self.last)

    def _draw_chart(self, result: RooflineResult) -> None:
        device = DEVICES[self.gpu.value]
        limits: dict[str, Ceilings | DeviceSpec] = {"this machine, measured": result.ceilings}
        try:
            there = result.on(device)
            limits[f"{device.name}, data sheet"] = device
            self.say_problem("")
        except ValueError as error:
            there = {}
            self.say_problem(f"{error}. Choose another GPU.")
        self.table.value = _table(result, there, device)
        self.chart.draw(roofline_chart(_named(result.traces), limits, dtype=result.dtype))

    def _traces(self) -> Mapping[str, RunTrace]:
        source: Any = self._source
        if isinstance(source, Panel):
            source = source.result.traces
        elif callable(source):
            source = source()
        traces = {"": source} if isinstance(source, RunTrace) else dict(source)
        if not any(trace.totals.steps for trace in traces.values()):
            raise ValueError("there are no steps to look at yet: run something first")
        return traces


def _named(traces: Mapping[str, RunTrace]) -> RunTrace | Mapping[str, RunTrace]:
    return traces[""] if set(traces) == {""} else traces


def _table(result: RooflineResult, there: Mapping[tuple[str, str], str], gpu: DeviceSpec) -> str:
    rows = []
    for each in result.shares:
        whole = each.measured_s or 1.0
        row: dict[str, Any] = {"side": each.side} if each.side else {}
        row |= {
            "steps": f"{each.steps:,} {each.kind}",
            "per step": theme.format_seconds(each.measured_s / each.steps),
            "arithmetic": theme.format_percent(each.arithmetic_s / whole),
            "bytes": theme.format_percent(each.bytes_s / whole),
            "overhead": theme.format_percent(each.overhead_s / whole),
            "binds here": each.binds,
        }
        if (each.side, each.kind) in there:
            row[f"binds on {with_article(gpu.name)} (modelled)"] = there[each.side, each.kind]
        rows.append(row)
    ceilings = result.ceilings
    note = (
        "Shares of the measured step time: arithmetic and bytes at the best this machine reaches "
        f"({ceilings.processor}, {theme.format_count(ceilings.threads, 'thread')}, measured "
        f"{ceilings.date}); they may overlap, and overhead is what neither explains."
    )
    if ceilings.disturbed:
        note += " Something else ran while this machine was measured: take the shares as rough."
    return views.table(rows, note)
