"""The plan of one step: returned by the scheduler, read by the batch builder."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.request import Request


@dataclass
class StepPlan:
    """Which requests compute how many tokens in one step. Their pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens that each request computes, after those already computed or in flight."""
    preempted: list[Request] = field(default_factory=list)
    waits: bool = False
    """The request to preempt is in flight. Until its step is collected, the request that needs its
    pages and all requests after it compute nothing."""
    idle_places: int = 0
    """Places of a static batch whose request has left it (`BatchingPolicy.idle_places`)."""
