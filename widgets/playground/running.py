"""Run the sides of a setup in turn, each at most twenty seconds, and say what came out.

On the wall clock a drawn run of each side comes first, then rounds that draw nothing, from which
alone numbers are quoted. On the virtual clock drawing costs no modelled time, so one run is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.setup import Setup, model_directory
from minserve.bench.workloads.traffic import Traffic
from minserve.config import ConfigError
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace, StepTrace
from widgets.metrics import METRICS
from widgets.panels.base import Refusal
from widgets.panels.comparison.result import CompareResult
from widgets.panels.comparison.sides import SideRun, Sides, first_requests
from widgets.playground.result import LIMIT_S, PlayResult, pair_of
from widgets.theme import headless
from widgets.workers import Job, Pace, Stopped

Draw = Callable[[Mapping[str, RunTrace]], object]
_WARM_UP_REQUESTS = 2


class Limited:
    """A job that also stops when the time of one run is up."""

    def __init__(self, job: Job, limit_s: float, now: Callable[[], float]) -> None:
        self._job, self._now = job, now
        self._end_s = now() + limit_s
        self.cut = False

    @property
    def stopping(self) -> bool:
        """True once the reader stops, or the time is up."""
        self.cut = self.cut or self._now() >= self._end_s
        return self._job.stopping or self.cut

    def check(self) -> None:
        """Raise Stopped when told to stop."""
        self._job.check()


def requests_of(setup: Setup) -> Traffic:
    """The requests. Raises Refusal where there are none that could run."""
    try:
        return setup.traffic()
    except SetupError as error:
        raise Refusal(str(error)) from None


class Runs:
    """The runs of one press of the button."""

    def __init__(
        self,
        setup: Setup,
        job: Job,
        draw: Draw = lambda traces: None,
        limit_s: float = LIMIT_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.setup, self.job = setup, job
        self._draw, self._limit_s, self._now = draw, limit_s, now
        self.traffic = requests_of(setup)
        self.finished: dict[str, list[SideRun]] = {name: [] for name in setup.names}
        self.cut: dict[str, RunTrace] = {}
        self._seen: dict[str, RunTrace] = {}
        cost = setup.gpu.cost() if setup.clock == "virtual" else None
        self.sides = Sides(setup.model, setup.configs(), cost, setup.shape if cost else None)

    def all(self) -> PlayResult:
        """Run everything. Raises Stopped when the reader stops."""
        setup, names = self.setup, self.setup.names
        if setup.clock == "virtual":
            for place, name in enumerate(names):
                self.job.report(place / len(names), f"“{name}” on the virtual clock.")
                self._run(name, live=not headless(), keep=True)
        else:
            self._measured()
        self.job.report(1.0, "Counting.")
        return self._result()

    def _measured(self) -> None:
        setup, names = self.setup, self.setup.names
        self.job.report(0.0, "Loading the model.")
        self.sides.load()
        runs = (setup.rounds + 1) * len(names)
        for place, name in enumerate(names):
            # Not part of the limit: a first engine may compile its operators for half a minute.
            self.job.report(place / runs, f"Warming up: “{name}”.")
            self.sides.run(name, first_requests(self.traffic, _WARM_UP_REQUESTS), self.job)
        for place, name in enumerate(() if headless() else names):
            self.job.report(place / runs, f"Live: “{name}” is running.")
            self._run(name, live=True, keep=False)
        for number in range(setup.rounds):
            # The order turns every round, so that no side always runs first.
            for place, name in enumerate(names[::-1] if number % 2 else names):
                share = ((number + 1) * len(names) + place) / runs
                of = f"round {number + 1} of {setup.rounds}"
                self.job.report(share, f"Measuring undrawn, {of}: “{name}”.")
                if name not in self.cut:
                    self._run(name, live=False, keep=True)

    def _run(self, name: str, *, live: bool, keep: bool) -> None:
        """One run of one side; one that takes too long is cut, and so are its further rounds."""
        limited = Limited(self.job, self._limit_s, self._now)
        pace = Pace()
        trace: RunTrace | None = None

        def watch(growing: RunTrace, step: StepTrace) -> None:
            nonlocal trace
            trace = growing
            if live and not limited.stopping:
                self._seen[name] = growing
                pace.draw(lambda: self._draw(self._seen))

        try:
            run = self.sides.run(name, self.traffic, limited, watch=watch)  # type: ignore[arg-type]
        except Stopped:
            if self.job.stopping or not limited.cut:
                raise
            self.cut[name] = trace if trace is not None else RunTrace(1)
            self.finished[name] = []
            return
        if live:
            self._draw(self._seen)
        if keep:
            self.finished[name].append(run)

    def _result(self) -> PlayResult:
        setup, rate = self.setup, self.traffic.rate_per_s
        runs = {name: tuple(each) for name, each in self.finished.items() if each}
        pairs = {
            variant.name: pair_of(setup, variant.name, runs, tuple(METRICS.values()), rate)
            for variant in setup.variants
            if variant.name in runs and setup.base_name in runs
        }
        pairs = {name: self._with_model(pair) for name, pair in pairs.items()}
        return PlayResult(
            setup,
            self.traffic.name,
            rate,
            runs,
            dict(self.cut),
            pairs,
            {name: setup.resolved(name).notes for name in setup.names},
            self._texts(runs),
        )

    def _with_model(self, pair: CompareResult) -> CompareResult:
        """Without a verdict, the same two sides on the virtual clock: what a busy machine cannot
        change leads. As it was where they cannot run there, or not in the time of a run."""
        setup = self.setup
        if setup.clock == "virtual" or pair.verdict.decided:
            return pair
        try:
            cost = setup.gpu.cost()
            modelled = Sides(setup.model, {name: setup.config(name) for name in pair.sides}, cost)
            modelled.check()
            self.job.report(1.0, f"No verdict: modelling “{pair.sides[1]}” too.")
            limited = Limited(self.job, self._limit_s, self._now)
            traces = {
                name: modelled.run(name, self.traffic, limited).trace  # type: ignore[arg-type]
                for name in pair.sides
            }
        except (SetupError, ConfigError):
            return pair
        except Stopped:
            if self.job.stopping:
                raise
            return pair
        return replace(pair, virtual=traces)

    def _texts(self, runs: Mapping[str, tuple[SideRun, ...]]) -> dict[str, tuple[str, ...]]:
        if self.setup.clock == "virtual" or self.setup.workload.kind != "prompts":
            return {}
        tokenizer = Tokenizer.from_dir(model_directory(self.setup.model))
        if tokenizer is None:
            return {}
        return {
            name: tuple(tokenizer.decode(list(tokens)) for tokens in each[-1].tokens)
            for name, each in runs.items()
        }
