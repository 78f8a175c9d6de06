"""Engines for the suite: real shapes with random weights made on the device, timed by events.

For speed, never for quality: lengths are fixed, whatever the weights are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch

from minserve.batch import ForwardBatch
from minserve.bench.gpu.setting import Setting, free
from minserve.bench.gpu.timing import Event, new_event
from minserve.bench.workloads.drive import DriveResult, drive
from minserve.bench.workloads.shapes import SHAPES, Shape
from minserve.bench.workloads.traffic import Traffic
from minserve.build import build_engine, new_trace
from minserve.clock import Clock
from minserve.config import EngineConfig, resolve
from minserve.engine import Engine
from minserve.execution.runner import Handle, Runner, StepResult
from minserve.kernels.base import Ops
from minserve.loading import LoadedModel
from minserve.models.weights import random_weights
from minserve.trace import RunTrace


def shape_of(setting: Setting, name: str) -> Shape:
    """A named shape; in a dry run a small one with two layers, grouped and tied
    like the real one."""
    shape = SHAPES[name]
    if not setting.dry_run:
        return shape
    kv_heads = max(1, 4 * shape.num_kv_heads // shape.num_heads)
    return dataclasses.replace(
        shape,
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=16,
        intermediate_size=96,
        max_position=4096,
    )


def random_model(setting: Setting, shape: Shape, config: EngineConfig) -> LoadedModel:
    """A model of this shape, with weights drawn on the device."""
    spec = shape.spec()
    resolved = resolve(config.with_values({"dtype": setting.dtype}), spec)
    weights = random_weights(spec, resolved.dtype, resolved.device)
    name = f"{shape.name} (random weights)"
    return LoadedModel(name, Path(), resolved, None, {}, weights)


class WatchedRunner:
    """A runner that records an event of the device before and after each pass."""

    def __init__(self, inner: Runner, device: torch.device, clock: Clock) -> None:
        self._inner, self._device, self._clock = inner, device, clock
        self.passes: list[tuple[Event, Event]] = []

    def submit(self, batch: ForwardBatch) -> Handle:
        """See `Runner`."""
        start, end = (new_event(self._device, self._clock) for _ in range(2))
        start.record()
        handle = self._inner.submit(batch)
        end.record()
        self.passes.append((start, end))
        return handle

    def collect(self, handle: Handle) -> StepResult:
        """See `Runner`."""
        return self._inner.collect(handle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def between(self, first: int = 0) -> StepTimes | None:
        """Times of the passes from `first` on; None for fewer than two."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return step_times(self.passes[first:])


@dataclass(frozen=True)
class StepTimes:
    """Medians over consecutive steps, in seconds of the device."""

    period_s: float
    """From a pass's first kernel to the first kernel of the next."""
    busy_s: float
    """From a pass's first kernel to its last, including gaps inside it if the host
    launches too slowly."""
    idle_s: float
    """Period minus busy: no part of a pass is on the device."""


def step_times(passes: Sequence[tuple[Event, Event]]) -> StepTimes | None:
    """Step times from the events of consecutive passes."""
    if len(passes) < 2:
        return None
    pairs = list(itertools.pairwise(passes))
    periods = [1e-3 * one[0].elapsed_time(two[0]) for one, two in pairs]
    busy = [1e-3 * one[0].elapsed_time(one[1]) for one, _ in pairs]
    idle = [max(0.0, a - b) for a, b in zip(periods, busy, strict=True)]
    return StepTimes(median(periods), median(busy), median(idle))


class Bench:
    """One engine that serves the same traffic again and again, each time with a new trace and an
    empty prefix cache. A context manager; its memory is freed at the end."""

    def __init__(self, setting: Setting, loaded: LoadedModel, ops: Ops | None = None) -> None:
        self._setting, self._loaded = setting, loaded
        self.runner: WatchedRunner | None = None

        def watch(runner: Runner) -> Runner:
            self.runner = WatchedRunner(runner, setting.device, setting.clock)
            return self.runner

        self.engine: Engine = build_engine(loaded, setting.clock, ops=ops, watch=watch)

    def play(self, traffic: Traffic) -> tuple[RunTrace, DriveResult, StepTimes | None]:
        """Serve all of it; returns the trace, the outcome of the requests, and the
        device's own times."""
        engine, runner = self.engine, self.runner
        assert runner is not None, "build_engine watched its runner"
        engine.trace = new_trace(self._loaded.name, engine.config)
        if engine.memory.prefix is not None:
            # What the last round left in any tier would make this one another workload.
            engine.memory.prefix.clear()
        runner.passes.clear()
        result = drive(engine, traffic)
        engine.settle()
        return engine.trace, result, runner.between()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()
        del self.engine, self.runner
        free(self._setting.device)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the engine's configuration that are not at their default."""
        return changed(self.engine.config.config.to_dict())


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration that are not at their default; no paths."""
    plain = EngineConfig().to_dict()
    return {
        path: value
        for path, value in values.items()
        if value != plain.get(path) and not path.endswith("_path")
    }
