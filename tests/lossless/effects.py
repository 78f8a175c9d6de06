"""One small workload through an engine, and what can be seen of it afterwards.

Three engines, none of whose counters depends on the machine's speed: `modelled` (the real scheduler
and pages on modelled time), `echo` (a runner without a model, which may end a request by its
tokens), and `real` (the smallest model of the zoo, for what happens in a forward pass).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from engine.fakes import make_engine, tiny_spec

from minserve.build import build_engine, build_virtual_engine
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.hardware import DEVICES
from minserve.loading import load_model
from minserve.request import InvalidRequestError, Request, SamplingParams
from minserve.trace import RunTotals, StepTrace
from minserve.virtual import CostModel
from minserve.virtual.transfers import HostLink

SPEC = tiny_spec(max_position=128)
COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=0.001, link=HostLink(1e3))
"""A link so slow that computing again is the faster way back."""
TOKEN_BYTES = SPEC.kv_bytes_per_token(2)
TIGHT = 12 * 16 * TOKEN_BYTES
"""A pool of twelve pages of 16 tokens: too small for the requests below, large enough for each."""
HOST = 8 * 16 * TOKEN_BYTES

PROMPTS = (30, 3, 17, 50, 9, 40, 12, 25)
OUTPUTS = (20, 31, 6, 15, 40, 4, 28, 10)
PRIORITIES = (2, 1, 2, 0, 1, 2, 0, 1)
SHARED = 24
"""Tokens with which every other prompt begins."""


@dataclass(frozen=True)
class Seen:
    """What a run left behind."""

    engine: Engine
    requests: list[Request]
    steps: tuple[StepTrace, ...]
    totals: RunTotals
    calls: Counter[str]
    """How often a part of the engine was called, by name."""
    refused: int
    """Requests that were not admitted."""

    @property
    def finished(self) -> list[str]:
        """Requests in the order in which they ended."""
        return [record.request_id for record in self.engine.trace.requests]

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Prefill and decode tokens of each step."""
        return [(step.num_prefill_tokens, step.num_decode_tokens) for step in self.steps]

    @property
    def peak_blocks(self) -> int:
        return max(step.blocks_used for step in self.steps)


@dataclass(frozen=True)
class Load:
    """The requests of a run: as many waves, each sent when the one before has ended, so that it
    finds what is left, or `steps` after it."""

    params: Mapping[str, Any] = field(default_factory=dict)
    waves: int = 1
    steps: int | None = None


def modelled(config: EngineConfig) -> Engine:
    values = {"memory.kv_bytes": config.memory.kv_bytes or 1000 * 16 * TOKEN_BYTES}
    return build_virtual_engine(SPEC, config.with_values(values), COST)


def modelled_whole_device(config: EngineConfig) -> Engine:
    """With the pool that the memory of a very small GPU leaves."""
    weights = 2 * SPEC.num_parameters()
    device = replace(DEVICES["A100 80GB SXM"], memory_bytes=4 * weights)
    return build_virtual_engine(SPEC, config, replace(COST, device=device))


def echo(config: EngineConfig) -> Engine:
    return make_engine(config, num_blocks=64)[0]


def real(config: EngineConfig) -> Engine:
    values = {"device": "cpu", "scheduling.max_model_len": 128}
    return build_engine(load_model("zoo/draft", config.with_values(values), progress=False))


def run(build: Callable[[EngineConfig], Engine], values: Mapping[str, Any], load: Load) -> Seen:
    """All requests to their end, with the calls of what a switch may leave out counted."""
    engine = build(EngineConfig().with_values(values))
    calls: Counter[str] = Counter()
    vars(engine)["memory"] = Counted(engine.memory, {"check"}, calls)
    runner = vars(engine)["_runner"]
    if hasattr(runner, "_decoder"):
        runner._decoder = Counted(runner._decoder, {"head"}, calls)
    steps: list[StepTrace] = []
    requests: list[Request] = []
    refused = 0
    for wave in range(load.waves):
        for index, (length, count) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
            begin = [5] * SHARED if index % 2 else [7 + index]
            prompt = (begin + [20 + index] * length)[:length]
            wanted = {"max_tokens": count, "temperature": 0.0, "ignore_eos": True}
            params = SamplingParams(**(wanted | load.params))
            name = f"{wave}.{index}"
            try:
                requests += engine.add(name, prompt, params, priority=PRIORITIES[index])
            except InvalidRequestError:
                refused += 1
        last = wave == load.waves - 1
        first = len(steps)
        while engine.has_work and (last or len(steps) - first != load.steps):
            steps.append(engine.step())
    return Seen(engine, requests, tuple(steps), engine.trace.totals, calls, refused)


class Counted:
    """Stands in for a part of the engine; counts how often some of its methods are asked for."""

    def __init__(self, part: Any, names: Set[str], calls: Counter[str]) -> None:
        self.part, self._names, self._calls = part, names, calls

    def __getattr__(self, name: str) -> Any:
        self._calls[name] += name in self._names
        return getattr(self.part, name)
