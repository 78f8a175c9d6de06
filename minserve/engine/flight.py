"""A step in flight (planned and submitted), and the counts made when it is committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from minserve.draft import Draft
from minserve.engine.prepare import BuiltBatch
from minserve.execution.runner import Handle
from minserve.memory import MemoryEvents
from minserve.request import Request
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
    for row, request in built.draws():
        request.num_pending_tokens += 1
        request.pending_row = row


@dataclass
class CommitCounts:
    """Counts of one step, filled in while it is committed."""

    collected_s: float
    """When its results arrived, by the engine's clock."""
    num_prefill: int = 0
    """Computed tokens of prompts and recomputation: not of decoding requests."""
    num_decode: int = 0
    """Computed tokens of requests that had caught up: their newest token, and their draft."""
    drafts: DraftCounts | None = None
    """None: no draft was verified."""
    num_recomputed: int = 0
    num_sampled: int = 0
    num_finished: int = 0
    num_discarded: int = 0
    """Tokens computed for requests that ended while the step was in flight."""
    details: list[RequestStep] = field(default_factory=list)
    num_prompt: int = 0
    """Prompt tokens of the samples that got their first token."""
    ttft_s: list[float] = field(default_factory=list)
    """From arrival, of each sample that got its first token."""
    waited_since: dict[float, int] = field(default_factory=dict)
    """When samples got the token before -> how many of them got the next one now."""

    def deliver(self, request: Request) -> None:
        """Count that a sample got at least one token."""
        before, request.last_token_s = request.last_token_s, self.collected_s
        if before is None:
            self.num_prompt += len(request.prompt_token_ids)
            self.ttft_s.append(self.collected_s - request.arrival_s)
        else:
            self.waited_since[before] = self.waited_since.get(before, 0) + 1

    def add_draft(self, request: Request, draft: Draft) -> DraftCounts:
        """Count a draft that was verified, as proposed; returns the counts of all drafts."""
        if self.drafts is None:
            self.drafts = DraftCounts()
        self.drafts.add(request, draft)
        return self.drafts


@dataclass
class DraftCounts:
    """Counts of the drafts that one step verified."""

    num_drafts: int = 0
    proposed: list[int] = field(default_factory=list)
    """Proposed tokens by their depth in the draft, from 1."""
    accepted: list[int] = field(default_factory=list)
    """Those of them that became part of an output."""

    def add(self, request: Request, draft: Draft) -> None:
        """Count a draft as proposed."""
        self.num_drafts += 1
        request.num_proposed_tokens += len(draft)
        deepest = max(draft.depths)
        for counts in (self.proposed, self.accepted):
            counts.extend([0] * (deepest - len(counts)))
        for depth in draft.depths:
            self.proposed[depth - 1] += 1

    def add_accepted(self, request: Request, place: int) -> None:
        """Count a token of that draft that the request takes; `place` 0 is the first of them."""
        request.num_accepted_tokens += 1
        self.accepted[place] += 1
