"""Compare: two configurations, one workload, one button.

Both sides run on the real engine, one after the other and never at once: first a round that draws
while it runs, then quiet rounds, from which alone numbers are quoted. Knows nothing about what the
switch does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minserve.bench.compare.setup import Setup
from minserve.bench.workloads.shapes import Shape
from minserve.bench.workloads.traffic import Traffic
from minserve.config import EngineConfig
from minserve.trace import RunTrace, StepTrace
from minserve.virtual import CostModel
from widgets.metrics import METRICS, Metric, find_metric
from widgets.panels import views
from widgets.panels.base import REFUSALS, Panel
from widgets.panels.comparison.playground import PlaygroundFold, setup_of
from widgets.panels.comparison.recording import find_recording
from widgets.panels.comparison.result import (
    Agreement,
    CompareResult,
    Invariant,
    identical_tokens,
    measure,
)
from widgets.panels.comparison.sides import (
    DEFAULT_COST,
    SideRun,
    Sides,
    first_requests,
    virtual_by_default,
)
from widgets.panels.comparison.verdict import LEAST_ROUNDS
from widgets.panels.comparison.view import CompareView
from widgets.panels.controls import Control, Slide, Spec, config_control
from widgets.theme import headless
from widgets.workers import Job, Pace, Stopped

Workload = Traffic | Callable[..., Traffic]
Switch = Mapping[str, Any] | tuple[EngineConfig, EngineConfig]

_WARM_UP_REQUESTS = 2
MORE_ROUNDS = 4
"""Most further rounds where the first ones gave no verdict."""


class Compare(Panel):
    """Two configurations of one model over one workload.

    `base` is side A; `switch` names the fields that side B changes, or gives both configurations
    (then `base` is where the controls start from). `workload` is the traffic, or a function of the
    `workload_controls`' values that returns it. `controls` are configuration fields the reader may
    set: dotted paths, or a `Slide` or `Pick` named by one. They hold for both sides, except a field
    of the switch, which is side B's.

    `invariant` compares tokens (identical, unless the chapter states a tolerance). `virtual` adds a
    run of both sides on a modelled device, whose numbers are the same everywhere. `recorded` is the
    chapter whose runs on a GPU are drawn beside these, dotted, where they are recorded and of the
    same work.
    """

    def __init__(
        self,
        base: EngineConfig,
        switch: Switch,
        workload: Workload,
        *,
        controls: Sequence[str | Spec] = (),
        workload_controls: Sequence[Spec] = (),
        model: str = "zoo/base",
        names: tuple[str, str] = ("off", "on"),
        title: str = "",
        headline: str | Metric = "output_tokens_per_s",
        metrics: Sequence[Metric] = (),
        rounds: int = 5,
        rate: tuple[float, float] | None = None,
        invariant: Invariant = identical_tokens,
        gpu: str = "H100 SXM",
        virtual: CostModel | None = None,
        shape: Shape | None = None,
        recorded: str = "",
        clock: str = "",
    ) -> None:
        """`rate` bounds the slider of arrivals per second, where the workload has arrivals.
        `clock` is "wall" or "virtual"; left empty, what MINSERVE_CLOCK says."""
        if names[0] == names[1]:
            raise ValueError(f"Compare(names={names}): expected two different names")
        super().__init__(title or _title(switch, names))
        self.names = names
        self._base, self._switch, self._workload, self._model = base, switch, workload, model
        self.headline = find_metric(headline)
        if self.headline.samples is None:
            raise ValueError(
                f"Compare(headline={self.headline.name!r}): the figure draws the headline, so it "
                "needs `samples`"
            )
        listed = {metric.name: metric for metric in (self.headline, *metrics, *METRICS.values())}
        self.metrics = tuple(listed.values())
        self._rounds, self._invariant = rounds, invariant
        self._virtual_cost, self.shape = virtual, shape
        self._recorded = recorded
        on_virtual = clock == "virtual" or (not clock and virtual_by_default())
        self.cost = (virtual or DEFAULT_COST) if on_virtual else None
        if self.cost is None and rounds < LEAST_ROUNDS:
            raise ValueError(
                f"Compare(rounds={rounds}): a measured verdict needs at least {LEAST_ROUNDS} rounds"
            )
        start = switch[1] if isinstance(switch, tuple) else base.with_values(switch)
        self.add_controls(config_control(field, start) for field in controls)
        self._fields = list(self.controls)
        self.add_controls(Control(spec) for spec in workload_controls)
        self._parameters = list(self.controls)[len(self._fields) :]
        for control in self.controls.values():
            control.observe(self._changed)
        self.rate = self._rate_slider(rate)
        parts = [control.widget for control in self.controls.values()]
        if self.rate is not None:
            parts.append(self.rate.widget)
        if self.cost is not None:
            text = "Time is modelled here (virtual clock): this machine's own speed plays no part."
            parts.append(views.html(views.sentence(text, "info")))
        self.settings.children = tuple(parts)
        self.view = CompareView(self.headline, gpu)
        self.results.children = (self.view.widget,)
        self.playground = PlaygroundFold(self._setup)
        self.widget.children += (self.playground.widget,)

    # Settings.

    def configs(self) -> dict[str, EngineConfig]:
        """Both sides as the controls stand. Raises ConfigError."""
        chosen = {path: self.controls[path].value for path in self._fields}
        if isinstance(self._switch, tuple):
            first, second = self._switch
            shared, theirs = chosen, {}
        else:
            first, second = self._base, self._base.with_values(self._switch)
            theirs = {path: value for path, value in chosen.items() if path in self._switch}
            shared = {path: value for path, value in chosen.items() if path not in theirs}
        return {
            self.names[0]: first.with_values(shared),
            self.names[1]: second.with_values(shared | theirs),
        }

    def traffic(self) -> Traffic:
        """The workload as the controls stand."""
        if isinstance(self._workload, Traffic):
            return self._workload
        return self._workload(**{name: self.controls[name].value for name in self._parameters})

    def check(self) -> None:
        """Raise ConfigError where a side cannot work."""
        self._sides(self.configs()).check()

    def facts(self) -> dict[str, Any]:
        """`CompareResult.facts` of the last run: the same on every machine."""
        return self.result.facts()

    def _sides(self, configs: Mapping[str, EngineConfig]) -> Sides:
        return Sides(self._model, configs, self.cost, self.shape if self.cost else None)

    def _setup(self) -> tuple[Setup, list[str]]:
        traffic = self.traffic()
        if self.rate is not None:
            traffic = replace(traffic, rate_per_s=self.rate.value)
        model = self._model if self.cost is None or self.shape is None else self.shape.name
        return setup_of(self.configs(), traffic, model, self.cost, self.headline, self._rounds)

    def _changed(self) -> None:
        try:
            self.check()
        except REFUSALS as error:
            self.say_problem(str(error))
        else:
            self.say_problem("")

    def _rate_slider(self, bounds: tuple[float, float] | None) -> Control | None:
        rate = self.traffic().rate_per_s
        if rate is None:
            return None
        low, high = bounds or (rate / 8, rate * 8)
        return Control(
            Slide("rate_per_s", low, high, rate, label="arrivals per second", log=True,
                  doc="Used by the next run." if self.cost is not None else
                  "Takes effect while the engine runs; the quiet rounds keep the rate they "
                  "began with.")
        )  # fmt: skip

    # The run.

    def work(self, job: Job) -> CompareResult:
        """A drawn round, then quiet ones, then what can be computed without running."""
        try:
            return self._rounds_of(job)
        except Stopped:
            self.view.stopped()
            raise

    def _rounds_of(self, job: Job) -> CompareResult:
        configs, traffic = self.configs(), self.traffic()
        sides = self._sides(configs)
        job.report(0.0, "Loading the model.")
        sides.load()
        rounds = 1 if self.cost is not None else self._rounds
        most = 1 if self.cost is not None else rounds + MORE_ROUNDS
        live = 0 if headless() else 1
        if headless():
            for name in self.names:
                sides.run(name, first_requests(traffic, _WARM_UP_REQUESTS), job)
        else:
            traces: dict[str, RunTrace] = {}
            for place, name in enumerate(self.names):
                job.report(place / (2 * rounds + 2), f"Live: “{name}” is running.")
                self._live(sides, name, traffic, job, traces)
        rate = self.rate.value if self.rate is not None else None
        pace = None if rate is None else lambda: rate
        runs: dict[str, list[SideRun]] = {name: [] for name in self.names}
        number = 0
        while number < rounds or (number < most and self._undecided(runs)):
            of = max(rounds, number + 1)
            # The order turns every round, so that no side always runs first.
            for place, name in enumerate(self.names[::-1] if number % 2 else self.names):
                share = (live + number + place / 2) / (live + of)
                job.report(share, f"Measuring undrawn, round {number + 1} of {of}: “{name}”.")
                runs[name].append(sides.run(name, traffic, job, rate_per_s=pace))
            number += 1
        job.report(1.0, "Counting.")
        return self._conclude(configs, traffic, rate, runs, job)

    def _undecided(self, runs: Mapping[str, Sequence[SideRun]]) -> bool:
        """True where the headline has no verdict yet: a few more rounds may find one."""
        found = measure([self.headline], runs, exact=False)
        return any(not each.verdict.decided for each in found.values())

    def _live(
        self, sides: Sides, name: str, traffic: Traffic, job: Job, traces: dict[str, RunTrace]
    ) -> None:
        pace = Pace()

        def draw() -> None:
            # What is drawn now is of these settings, whatever the last result was of.
            self._compare_settings()
            self.view.draw_live(traces)

        def watch(trace: RunTrace, step: StepTrace) -> None:
            traces[name] = trace
            # A drawing takes a tenth of a second and more: none is begun after a stop.
            if not (self.masked or job.stopping):
                pace.draw(draw)

        slider = self.rate
        rate = None if slider is None else (lambda: slider.value)
        traces[name] = sides.run(name, traffic, job, rate_per_s=rate, watch=watch).trace
        if not self.masked:
            draw()

    def _conclude(
        self,
        configs: Mapping[str, EngineConfig],
        traffic: Traffic,
        rate: float | None,
        runs: Mapping[str, Sequence[SideRun]],
        job: Job,
    ) -> CompareResult:
        first, second = self.names
        virtual: dict[str, RunTrace] = {}
        if self._virtual_cost is not None and self.cost is None:
            modelled = Sides(self._model, configs, self._virtual_cost, self.shape)
            virtual = {name: modelled.run(name, traffic, job).trace for name in self.names}
        if self.cost is not None:
            agreement = Agreement(None, "No tokens are computed on the virtual clock.")
        else:
            pairs = zip(runs[first], runs[second], strict=True)
            agreement = self._invariant([(a.tokens, b.tokens) for a, b in pairs])
        measured = measure(self.metrics, runs, exact=self.cost is not None)
        if self.headline.name not in measured:
            raise RuntimeError(
                f"the runs say nothing about {self.headline.label}: choose another headline, or a "
                "workload with more requests and tokens"
            )
        ours, theirs = (config.to_dict() for config in configs.values())
        # The round that the quoted ratio comes from is the one to show.
        middle = measured[self.headline.name].middle
        traces = {name: side[middle].trace for name, side in runs.items()}
        recording = None
        # On the virtual clock the sides are of another model, or of none that runs.
        if self._recorded and self.cost is None:
            recording = find_recording(self._recorded, configs, traces)
        return CompareResult(
            sides=self.names,
            changed={
                path: (ours[path], theirs[path]) for path in ours if ours[path] != theirs[path]
            },
            rounds=len(runs[first]),
            headline=self.headline.name,
            metrics=measured,
            agreement=agreement,
            traces=traces,
            rate_per_s=rate,
            provenance="measured" if self.cost is None else "modelled",
            virtual=virtual,
            recording=recording,
        )

    def show(self, result: CompareResult) -> None:
        """Draw the final figures and numbers."""
        self.view.draw(result)


def _title(switch: Switch, names: tuple[str, str]) -> str:
    if isinstance(switch, tuple) or not switch:
        return f"Compare “{names[0]}” with “{names[1]}”"
    return "Compare: " + ", ".join(f"{path} = {value}" for path, value in switch.items())
