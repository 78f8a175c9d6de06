"""A runner without a model: it charges the time a modelled device would take, on a virtual clock.

The same scheduler and page pool run over it as over a real runner. A `StepCost` says what a step
costs. Draws no real tokens: lengths come from the requests.
"""

from __future__ import annotations

from typing import NamedTuple

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock
from minserve.execution.runner import StepResult
from minserve.hardware import WorkCounter
from minserve.spec import UNQUANTIZED, ModelSpec, StoragePlan
from minserve.trace import StepWork
from minserve.virtual.costs import StepCost


class _VirtualHandle(NamedTuple):
    ready_s: float
    duration_s: float
    num_samples: int


class VirtualRunner:
    """Charges modelled time. Every drawn token is `token_id`: give requests `ignore_eos` and
    `max_tokens`, so that their lengths are those of the workload."""

    def __init__(
        self,
        spec: ModelSpec,
        itemsize: int,
        cost: StepCost,
        clock: VirtualClock,
        token_id: int = 0,
        storage: StoragePlan = UNQUANTIZED,
    ) -> None:
        self._counter = WorkCounter(spec, itemsize, storage=storage)
        self._cost = cost
        self._clock = clock
        self.token_id = token_id
        self._busy_until_s = 0.0

    def step_s(self, batch: ForwardBatch) -> float:
        """Modelled seconds of one forward pass."""
        work = self._counter.count(batch.query_lens, batch.context_lens, batch.num_samples)
        return self._cost.step_s(work, batch.num_tokens, batch.num_requests)

    def submit(self, batch: ForwardBatch) -> _VirtualHandle:
        """Queue the pass after the ones before it."""
        duration_s = self.step_s(batch)
        return _VirtualHandle(self._occupy(duration_s), duration_s, batch.num_samples)

    def charge(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Advance the clock by one pass for which no batch was built; returns its seconds."""
        duration_s = self._cost.step_s(work, num_tokens, num_requests)
        self._clock.wait_until(self._occupy(duration_s))
        return duration_s

    def _occupy(self, duration_s: float) -> float:
        self._busy_until_s = max(self._busy_until_s, self._clock.now()) + duration_s
        return self._busy_until_s

    def collect(self, handle: _VirtualHandle) -> StepResult:
        """Advance the clock until the pass is done."""
        self._clock.wait_until(handle.ready_s)
        return StepResult(
            token_ids=[self.token_id] * handle.num_samples,
            logprobs={},
            prompt_logprobs=[],
            forward_s=handle.duration_s,
            attention_s=0.0,
            sample_s=0.0,
        )
