"""A runner without a model: it charges the time a modelled device would take, on a virtual clock.

The same scheduler and page pool run over it as over a real one. Time is the roofline of the step's
counted work over an efficiency, plus a fixed overhead per step; with efficiency 1 and no overhead
it is a bound, not a prediction. Draws no real tokens: lengths come from the requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock
from minserve.execution.runner import StepResult
from minserve.hardware import Ceilings, DeviceSpec, WorkCounter, roofline
from minserve.spec import ModelSpec
from minserve.trace import StepWork
from minserve.virtual.transfers import HostLink


class StepCost(Protocol):
    """What a step costs."""

    @property
    def device(self) -> object:
        """Of which: its `name`, `memory_bytes` and `memory_bytes_per_s` are used, if any."""
        ...

    @property
    def dtype(self) -> str:
        """In which number format."""
        ...

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Seconds of a step with this work, over so many tokens of so many requests."""
        ...


@dataclass(frozen=True)
class CostModel:
    """The roofline of a step's work over an efficiency, and an overhead per step."""

    device: DeviceSpec | Ceilings
    """A GPU from the table, or this machine as measured."""
    dtype: str = "bfloat16"
    efficiency: float = 1.0
    """Share of the roofline that is reached, above 0 and at most 1."""
    overhead_s: float = 0.0
    """Seconds per step that are neither arithmetic nor traffic: launches, scheduling."""
    link: HostLink | None = None
    """How pages move between tiers; None: as `HostLink` assumes."""

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Modelled seconds of a step with this work."""
        bound_s = roofline(work, self.device, self.dtype).bound_s
        return bound_s / self.efficiency + self.overhead_s

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1 or self.overhead_s < 0:
            raise ValueError(
                f"CostModel(efficiency={self.efficiency}, overhead_s={self.overhead_s}): expected "
                "an efficiency above 0 and at most 1, and an overhead of at least 0 seconds"
            )


@dataclass(frozen=True)
class LaunchCost(CostModel):
    """A `CostModel` whose host launches every operator by itself, or a whole step as a graph where
    it captured one for exactly that many rows.

    The host runs ahead of the device, so a step takes as long as the slower of the two.
    """

    launches: int = 0
    """Operators of a step."""
    launch_s: float = 5e-6
    """Seconds of the host per launch: assumed, since no data sheet has it."""
    captured: frozenset[int] = frozenset()
    """Numbers of rows for which there is a graph."""

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Modelled seconds of a step with this work; `num_tokens` counts padded rows too."""
        launches = 1 if num_tokens in self.captured else self.launches
        return max(super().step_s(work, num_tokens, num_requests), launches * self.launch_s)


@dataclass(frozen=True)
class _VirtualHandle:
    ready_s: float
    duration_s: float
    num_samples: int


class VirtualRunner:
    """Charges modelled time. Every drawn token is `token_id`: give requests `ignore_eos` and a
    `max_tokens`, so that their lengths are the workload's."""

    def __init__(
        self,
        spec: ModelSpec,
        itemsize: int,
        cost: StepCost,
        clock: VirtualClock,
        token_id: int = 0,
    ) -> None:
        self._counter = WorkCounter(spec, itemsize)
        self._cost = cost
        self._clock = clock
        self.token_id = token_id
        self._busy_until_s = 0.0

    def step_s(self, batch: ForwardBatch) -> float:
        """Modelled seconds of one forward pass."""
        work = self._counter.count(batch.query_lens, batch.context_lens, batch.num_samples)
        return self._cost.step_s(work, batch.num_tokens, batch.num_requests)

    def submit(self, batch: ForwardBatch) -> _VirtualHandle:
        """Queue the pass behind those before it."""
        duration_s = self.step_s(batch)
        return _VirtualHandle(self._occupy(duration_s), duration_s, batch.num_samples)

    def charge(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Let the time of one pass go by that nobody built a batch for; returns its seconds."""
        duration_s = self._cost.step_s(work, num_tokens, num_requests)
        self._clock.wait_until(self._occupy(duration_s))
        return duration_s

    def _occupy(self, duration_s: float) -> float:
        self._busy_until_s = max(self._busy_until_s, self._clock.now()) + duration_s
        return self._busy_until_s

    def collect(self, handle: _VirtualHandle) -> StepResult:
        """Let time pass until the pass is done."""
        self._clock.wait_until(handle.ready_s)
        return StepResult(
            token_ids=[self.token_id] * handle.num_samples,
            logprobs={},
            prompt_logprobs=[],
            forward_s=handle.duration_s,
            attention_s=0.0,
            sample_s=0.0,
        )
