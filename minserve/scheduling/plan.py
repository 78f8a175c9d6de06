"""What one step computes: the scheduler's answer, and the batch builder's question."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.request import Request


@dataclass
class StepPlan:
    """Which requests compute how many tokens in one step; their pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens each request computes, behind those computed or in flight."""
    preempted: list[Request] = field(default_factory=list)
    waits: bool = False
    """The request that has to give way is in flight: requests behind the one that needs its pages
    compute nothing until that step is collected."""
    idle_places: int = 0
    """Places of a static batch whose request has left it (`BatchingPolicy.idle_places`)."""
