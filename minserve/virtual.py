"""A runner without a model: it charges the time a modelled device would take, on a virtual clock.

The same scheduler and page pool run over it as over a real one. Time is the roofline of the step's
counted work over an efficiency, plus a fixed overhead per step; with efficiency 1 and no overhead
it is a bound, not a prediction. Draws no real tokens: lengths come from the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock
from minserve.hardware import Ceilings, DeviceSpec, WorkCounter, roofline
from minserve.memory import NoStore
from minserve.runner import StepResult
from minserve.spec import ModelSpec
from minserve.trace import StepWork


class StepCost(Protocol):
    """What a step costs."""

    @property
    def device(self) -> DeviceSpec | Ceilings:
        """Of which device."""
        ...

    @property
    def dtype(self) -> str:
        """In which number format."""
        ...

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Seconds of a step with this work, over so many tokens of so many requests."""
        ...


@dataclass(frozen=True)
class Links:
    """How fast pages move between tiers, in one direction."""

    host_bytes_per_s: float
    """Device to host memory and back: half of what vendors print for a bus."""
    disk_bytes_per_s: float = float("inf")
    """Host memory to disk and back."""


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
    links: Links | None = None
    """None: pages move between tiers in no time."""

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


class VirtualStore(NoStore):
    """Pages without content, whose transfers take modelled time. The engine waits for them: what
    it computes next reads these pages."""

    def __init__(self, page_bytes: int, links: Links, clock: VirtualClock) -> None:
        self._host_s = page_bytes / links.host_bytes_per_s
        self._disk_s = page_bytes / links.disk_bytes_per_s
        self._clock = clock

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Device to host."""
        self._pass(len(blocks) * self._host_s)

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Host to device."""
        self._pass(len(blocks) * self._host_s)

    def read_slot(self, slot: int) -> memoryview:
        """Host to disk."""
        self._pass(self._disk_s)
        return super().read_slot(slot)

    def write_slot(self, slot: int, data: bytes) -> None:
        """Disk to host."""
        self._pass(self._disk_s)

    def _pass(self, seconds: float) -> None:
        self._clock.wait_until(self._clock.now() + seconds)


@dataclass(frozen=True)
class _Pending:
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

    def submit(self, batch: ForwardBatch) -> _Pending:
        """Queue the pass behind those before it."""
        duration_s = self.step_s(batch)
        return _Pending(self._occupy(duration_s), duration_s, batch.num_samples)

    def charge(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Let the time of one pass go by that nobody built a batch for; returns its seconds."""
        duration_s = self._cost.step_s(work, num_tokens, num_requests)
        self._clock.wait_until(self._occupy(duration_s))
        return duration_s

    def _occupy(self, duration_s: float) -> float:
        self._busy_until_s = max(self._busy_until_s, self._clock.now()) + duration_s
        return self._busy_until_s

    def collect(self, handle: _Pending) -> StepResult:
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
