"""Sweep: one knob, one metric, a run of the engine per value.

The measured line has its spread; a modelled line, where asked for, is dashed. With a switch, every
value runs both sides and the line is their ratio: where it crosses 1, the switch stops paying.
Nothing is drawn while a run lasts. Knows nothing about what the knob does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minserve.bench.interleave import Spread
from minserve.bench.workloads.traffic import Traffic
from minserve.config import EngineConfig, describe
from minserve.spec import ModelSpec
from minserve.trace import TraceHeader
from minserve.virtual import CostModel
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.compare import Workload
from widgets.panels.metrics import Metric, find_metric
from widgets.panels.sides import DEFAULT_COST, Sides, first_requests, virtual_by_default
from widgets.panels.sweep_figure import sweep_figure
from widgets.panels.sweep_result import SweepResult
from widgets.theme import headless
from widgets.workers import Job, Pace

Modelled = CostModel | Callable[[Any], float]


class Sweep(Panel):
    """Run `base` at each of `values` of `knob`, and show `metric`.

    `knob` is a configuration field, or a parameter of `workload` where that is a function. With
    `switch`, both sides run at every value. `modelled` is a CostModel, whose virtual engine gives
    the dashed line, or a function of the value; `virtual_spec` is another model to ask about.
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
        virtual_spec: ModelSpec | None = None,
        unit: str = "",
        title: str = "",
        clock: str = "",
    ) -> None:
        if len(values) < 2 or rounds < 1:
            raise ValueError(
                f"Sweep(values={list(values)}, rounds={rounds}): two values, one round"
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
        self._base, self._switch, self._names = base, switch, names
        self._workload, self._model, self._rounds = workload, model, rounds
        self._modelled, self._virtual_spec = modelled, virtual_spec
        on_virtual = clock == "virtual" or (not clock and virtual_by_default())
        given = modelled if isinstance(modelled, CostModel) else DEFAULT_COST
        self._cost = given if on_virtual else None
        self._pace = Pace()
        self.view = views.FigureView()
        self.results.children = (self.view.widget,)

    def configs(self, value: Any) -> dict[str, EngineConfig]:
        """The sides at one value. Raises ConfigError."""
        chosen = {self.knob: value} if self._is_field else {}
        sides = {self._names[0]: self._base}
        if self._switch is not None:
            sides[self._names[1]] = self._base.with_values(self._switch)
        return {name: config.with_values(chosen) for name, config in sides.items()}

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
        rounds = 1 if self._cost is not None else self._rounds
        for number in range(rounds):
            order = self.values[::-1] if number % 2 else self.values
            for place, value in enumerate(order):
                done = (number * len(order) + place) / (rounds * len(order))
                job.report(done, f"Round {number + 1} of {rounds}: {self.knob} = {value}.")
                found[value].append(self._point(sides[value], value, number, job, headers))
                if not headless() and not self.masked:
                    so_far = self._result_of(found, modelled, headers)
                    self._pace.draw(lambda so_far=so_far: self.show(so_far))
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
        if self._modelled is None or self._cost is not None:
            return {}
        if not isinstance(self._modelled, CostModel):
            return {value: float(self._modelled(value)) for value in self.values}
        line = {}
        for value in self.values:
            sides = Sides(self._model, self.configs(value), self._modelled, self._virtual_spec)
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
            sides=self._names if self._switch is not None else self._names[:1],
            points=points,
            modelled=modelled,
            headers=dict(headers),
            exact=self._cost is not None or steady,
        )

    def show(self, result: SweepResult) -> None:
        """Draw what has been measured."""
        self.view.draw(sweep_figure(result))

    def _traffic(self, value: Any) -> Traffic:
        if isinstance(self._workload, Traffic):
            return self._workload
        return self._workload() if self._is_field else self._workload(**{self.knob: value})

    def _sides(self, value: Any) -> Sides:
        spec = self._virtual_spec if self._cost else None
        return Sides(self._model, self.configs(value), self._cost, spec)
