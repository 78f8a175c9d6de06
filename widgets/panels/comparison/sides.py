"""Run one configuration over one workload on the engine, and say what came out.

Every run has an engine of its own, so that no round profits from the one before; weights are
shared. On the virtual clock the same scheduler runs and time is modelled. Knows nothing about
widgets; sides never run at once because the caller has the machine's one turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import Shape
from minserve.bench.workloads.traffic import Traffic
from minserve.build import build_engine, build_virtual_engine, resolve_virtual
from minserve.config import EngineConfig, resolve
from minserve.engine import Engine
from minserve.hardware import DEVICES
from minserve.loading import LoadedModel, find_model, load_model
from minserve.models import load_spec
from minserve.spec import ModelSpec
from minserve.trace import RunTrace, StepTrace
from minserve.virtual import CostModel
from widgets.workers import Job, Stopped

Tokens = tuple[tuple[int, ...], ...]
"""Generated tokens, by request in order of arrival; () for one that was refused."""

DEFAULT_COST = CostModel(DEVICES["T4"], "float16", efficiency=0.5, overhead_s=1e-3)
"""A modest GPU with an eager engine, where a chapter names none."""


def virtual_by_default() -> bool:
    """True under MINSERVE_CLOCK=virtual: on machines so busy that wall-clock curves are noise."""
    return os.environ.get("MINSERVE_CLOCK", "") == "virtual"


@dataclass(frozen=True)
class SideRun:
    """One run of one side."""

    trace: RunTrace
    tokens: Tokens


class Sides:
    """Named configurations of one model, run one at a time.

    With `cost`, nothing is computed: time is modelled, of `shape` where one is given, and tokens
    mean nothing.
    """

    def __init__(
        self,
        model: str,
        configs: Mapping[str, EngineConfig],
        cost: CostModel | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.configs = {
            # Timelines, stalls and typewriters all need to know what a step did for whom.
            name: config.with_values({"trace.per_request": True})
            for name, config in configs.items()
        }
        self._model, self._cost, self._shape = model, cost, shape
        self._loaded: dict[str, LoadedModel] = {}

    def check(self) -> None:
        """Raise ConfigError where a configuration cannot work with the model."""
        spec = self._model_spec()
        for config in self.configs.values():
            if self._cost is not None:
                resolve_virtual(spec, config, self._cost)
            else:
                resolve(config, spec)

    def load(self) -> None:
        """Read the weights; they are kept, and shared between sides of one number format."""
        if self._cost is None:
            threads = torch.get_num_threads()
            for name, config in self.configs.items():
                self._loaded[name] = load_model(self._model, config, progress=False)
            # A side sets its own number for its runs alone.
            torch.set_num_threads(threads)

    def run(
        self,
        name: str,
        traffic: Traffic,
        job: Job,
        *,
        rate_per_s: Callable[[], float] | None = None,
        watch: Callable[[RunTrace, StepTrace], None] | None = None,
    ) -> SideRun:
        """Play the traffic to its end. Raises Stopped when the job is told to stop.

        `watch` gets the growing trace after every step. Raises RuntimeError for a request that
        ended in an error.
        """
        job.check()
        engine = self._engine(name)
        trace = engine.trace

        def on_step(step: StepTrace) -> None:
            if watch is not None:
                watch(trace, step)

        threads = torch.get_num_threads()
        wanted = self.configs[name].kernels.num_threads
        try:
            if wanted is not None and self._cost is None:
                torch.set_num_threads(wanted)
            done = drive(
                engine,
                traffic,
                rate_per_s=rate_per_s,
                should_stop=lambda: job.stopping,
                on_step=on_step,
            )
        finally:
            torch.set_num_threads(threads)
        if done.stopped:
            raise Stopped
        for request in done.requests:
            if request.finish_reason == "error":
                raise RuntimeError(request.error or f"request {request.request_id} failed")
        tokens = [tuple(request.output_token_ids) for request in done.requests]
        for number in done.refused:  # in ascending order, so each place is final
            tokens.insert(number, ())
        return SideRun(trace, tuple(tokens))

    def _engine(self, name: str) -> Engine:
        if self._cost is not None:
            config, spec = self.configs[name], self._model_spec()
            # What is modelled is named: a shape's numbers are not the lab's own model's.
            model = self._model if self._shape is None else self._shape.name
            return build_virtual_engine(spec, config, self._cost, model)
        if name not in self._loaded:
            self.load()
        return build_engine(self._loaded[name])

    def _model_spec(self) -> ModelSpec:
        return self._shape.spec() if self._shape else load_spec(find_model(self._model))


def first_requests(traffic: Traffic, count: int) -> Traffic:
    """The beginning of the traffic, all at once: a warm-up."""
    return Traffic(f"{traffic.name}, first {count}", traffic.requests[:count], None, traffic.seed)
