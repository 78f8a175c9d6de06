"""A step in flight (planned and submitted), and the counts made when it is committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from minserve.engine.prepare import BuiltBatch
from minserve.execution.runner import Handle
from minserve.memory import MemoryEvents
from minserve.scheduling import StepPlan
from minserve.trace import RequestStep, StepWork


@dataclass(frozen=True)
class Flight:
    """A step between submit and collect."""

    plan: StepPlan
    built: BuiltBatch
    handle: Handle
    events: MemoryEvents
    """What planning did to pages."""
    start_s: float
    """By the engine's clock, like all times of a step."""
    schedule_s: float
    prepare_s: float
    work: StepWork
    blocks_used: int
    """Pages with an owner when the step was submitted."""
    owned_bytes: int
    """Bytes of those pages."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that the step computes, without padding."""
        return sum(self.plan.num_tokens)


def mark_in_flight(plan: StepPlan, built: BuiltBatch, start_s: float) -> None:
    """Record on each request how many of its tokens are in flight."""
    for request, count in zip(plan.requests, plan.num_tokens, strict=True):
        request.num_inflight_tokens += count
        if request.first_scheduled_s is None:
            request.first_scheduled_s = start_s
    for row, request in enumerate(built.sampled):
        request.num_pending_tokens += 1
        request.pending_row = row


@dataclass
class CommitCounts:
    """Counts of one step, filled in while it is committed."""

    collected_s: float
    """When its results arrived, by the engine's clock."""
    num_prefill: int = 0
    """Computed tokens that are not their request's newest one."""
    num_decode: int = 0
    """Computed tokens that are their request's newest one: one per request that had caught up."""
    num_recomputed: int = 0
    num_sampled: int = 0
    num_finished: int = 0
    num_discarded: int = 0
    """Tokens computed for requests that ended while the step was in flight."""
    details: list[RequestStep] = field(default_factory=list)
