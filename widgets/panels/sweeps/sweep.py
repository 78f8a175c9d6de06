"""Sweep: one knob, one metric, a run of the engine per value.

The measured line has its spread; a modelled line, where asked for, is dashed. With a switch, every
value runs both sides and the line is their ratio: where it crosses 1, the switch stops paying.
Nothing is drawn while a run lasts. Knows nothing about what the knob does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minserve.bench.interleave import Spread
from minserve.bench.workloads.shapes import Shape
from minserve.bench.workloads.traffic import Traffic
from minserve.config import EngineConfig, describe
from minserve.trace import TraceHeader
from minserve.virtual import CostModel
from widgets.metrics import Metric, find_metric
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.comparison.compare import Workload
from widgets.panels.comparison.sides import DEFAULT_COST, Sides, first_requests, virtual_by_default
from widgets.panels.comparison.verdict import LEAST_ROUNDS
from widgets.panels.sweeps.figure import sweep_figure
from widgets.panels.sweeps.result import SweepResult
from widgets.theme import headless
from widgets.workers import Job, Pace

Modelled = CostModel | Callable[[Any], float]


class Sweep(Panel):
    """Run `base` at each of `values` of `knob`, and show `metric`.

    `knob` is a configuration field, or a parameter of `workload` where that is a function. With
    `switch`, both sides run at every value. `modelled` is a CostModel, whose virtual engine gives
    the dashed line, or a function of the value; `shape` is another model to ask about. `label`
    is the knob in words. `threshold` is the gain that the chapter asks about: it is drawn, and
    `crossover` is where it is passed.
    """

    def __init__(
        self,
        base: EngineConfig,
        knob: str,
        values: Sequence[Any],
        workload: Workload,
        *,
        metric: str | Metric = "output_tokens_per_s",
        switch: Mapping[str, Any] | None = None,
        names: tuple[str, str] = ("off", "on"),
        model: str = "zoo/base",
        rounds: int = 3,
        modelled: Modelled | None = None,
        shape: Shape | None = None,
        threshold: float = 1.0,
        label: str = "",
        unit: str = "",
        title: str = "",
        clock: str = "",
    ) -> None:
        if len(values) < 2 or threshold <= 0:
            raise ValueError(
                f"Sweep(values={list(values)}, threshold={threshold}): expected at least two "
                "values, and a threshold above 0"
            )
        self.metric = find_metric(metric)
        super().__init__(title or f"Sweep: {self.metric.label} over {knob}")
        knobs = {entry.path: entry for entry in describe()}
        self._is_field = knob in knobs
        if not self._is_field and isinstance(workload, Traffic):
            raise ValueError(
                f"Sweep: {knob!r} is no configuration field, and the workload has no parameters: "
                "give a function that takes it"
            )
        self.knob, self.values = knob, tuple(values)
        self._unit = unit or (knobs[knob].unit if self._is_field else "")
        self._base, self.switch, self._names = base, switch, names
        self._workload, self._model, self._rounds = workload, model, rounds
        self._modelled, self.shape, self._threshold = modelled, shape, threshold
        on_virtual = clock == "virtual" or (not clock and virtual_by_default())
        given = modelled if isinstance(modelled, CostModel) else DEFAULT_COST
        self.cost = given if on_virtual else None
        if self.cost is None and rounds < LEAST_ROUNDS:
            raise ValueError(
                f"Sweep(rounds={rounds}): measured values need at least {LEAST_ROUNDS} rounds"
            )
        self._label = label
        self._pace = Pace()
        self.view = views.FigureView()
        self.results.children = (self.view.widget,)

    def configs(self, value: Any) -> dict[str, EngineConfig]:
        """The sides at one value. Raises ConfigError."""
        chosen = {self.knob: value} if self._is_field else {}
        if self.switch is None:
            return {self._names[0]: self._base.with_values(chosen)}
        # A knob of the switch is turned on its side only: the other stays what it is compared with.
        ours = {} if self.knob in self.switch else chosen
        return {
            self._names[0]: self._base.with_values(ours),
            self._names[1]: self._base.with_values(dict(self.switch) | chosen),
        }

    def check(self) -> None:
        """Raise ConfigError where a value cannot work."""
        for value in self.values:
            self._sides(value).check()

    def facts(self) -> dict[str, Any]:
        """`SweepResult.facts` of the last run."""
        return self.result.facts()

    def work(self, job: Job) -> SweepResult:
        """Rounds up and down the values, sides in turn, drawing between runs only."""
        sides = {value: self._sides(value) for value in self.values}
        for each in sides.values():
            each.load()
        first = next(iter(sides.values()))
        for name in first.configs:
            first.run(name, first_requests(self._traffic(self.values[0]), 2), job)
        modelled = self._model_line(job)
        found: dict[Any, list[float]] = {value: [] for value in self.values}
        headers: dict[str, TraceHeader] = {}
        rounds = 1 if self.cost is not None else self._rounds
        for number in range(rounds):
            order = self.values[::-1] if number % 2 else self.values
            for place, value in enumerate(order):
                done = (number * len(order) + place) / (rounds * len(order))
                job.report(done, f"Round {number + 1} of {rounds}: {self.knob} = {value}.")
                found[value].append(self._point(sides[value], value, number, job, headers))
                if not headless() and not self.masked:
                    so_far = self._result_of(found, modelled, headers)
                    self._pace.draw(lambda so_far=so_far: self._draw(so_far, complete=False))
        return self._result_of(found, modelled, headers)

    def _point(
        self, sides: Sides, value: Any, number: int, job: Job, headers: dict[str, TraceHeader]
    ) -> float:
        names = list(sides.configs)
        traffic, numbers = self._traffic(value), {}
        for name in names[::-1] if number % 2 else names:
            run = sides.run(name, traffic, job)
            headers[name] = run.trace.header
            found = self.metric.read(run.trace)
            if found is None or (len(names) == 2 and found <= 0):
                raise RuntimeError(
                    f"at {self.knob} = {value} the run says nothing about {self.metric.label}: "
                    "choose another metric, or a workload with more requests and tokens"
                )
            numbers[name] = found
        if len(names) == 2:
            return numbers[names[1]] / numbers[names[0]]
        return numbers[names[0]]

    def _model_line(self, job: Job) -> dict[Any, float]:
        if self._modelled is None or self.cost is not None:
            return {}
        if not isinstance(self._modelled, CostModel):
            return {value: float(self._modelled(value)) for value in self.values}
        line = {}
        for value in self.values:
            sides = Sides(self._model, self.configs(value), self._modelled, self.shape)
            line[value] = self._point(sides, value, 0, job, {})
        return line

    def _result_of(
        self,
        found: Mapping[Any, Sequence[float]],
        modelled: Mapping[Any, float],
        headers: Mapping[str, TraceHeader],
    ) -> SweepResult:
        points = {value: Spread.of(numbers) for value, numbers in found.items() if numbers}
        steady = self.metric.counted and all(spread.min == spread.max for spread in points.values())
        return SweepResult(
            knob=self.knob,
            unit=self._unit,
            metric=self.metric,
            sides=self._names if self.switch is not None else self._names[:1],
            points=points,
            modelled=modelled,
            headers=dict(headers),
            exact=self.cost is not None or steady,
            label=self._label,
            threshold=self._threshold,
        )

    def show(self, result: SweepResult) -> None:
        """Draw what has been measured."""
        self._draw(result, complete=True)

    def _draw(self, result: SweepResult, *, complete: bool) -> None:
        # What is drawn now is of these settings, whatever the last result was of.
        self._compare_settings()
        self.view.draw(sweep_figure(result, complete=complete), anew=complete)

    def _traffic(self, value: Any) -> Traffic:
        if isinstance(self._workload, Traffic):
            return self._workload
        return self._workload() if self._is_field else self._workload(**{self.knob: value})

    def _sides(self, value: Any) -> Sides:
        spec = self.shape if self.cost else None
        return Sides(self._model, self.configs(value), self.cost, spec)
