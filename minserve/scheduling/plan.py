"""The plan of one step: returned by the scheduler, read by the batch builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minserve.draft import Draft
from minserve.request import Request


@dataclass
class StepPlan:
    """Which requests compute how many tokens in one step. Their pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens that each request computes, after those already computed or in flight: known ones,
    and the tokens of its draft."""
    drafts: dict[Request, Draft] = field(default_factory=dict)
    """The drafts that this step verifies, as far as budget and pages allow."""
    preempted: list[Request] = field(default_factory=list)
    waits: bool = False
    """The request to preempt is in flight. Until its step is collected, the request that needs its
    pages and all requests after it compute nothing."""
    idle_places: int = 0
    """Places of a static batch whose request has left it (`BatchingPolicy.idle_places`)."""

    def add_draft(self, index: int, draft: Draft) -> None:
        """Let request `index` of the plan also compute the tokens of a draft."""
        self.num_tokens[index] += len(draft)
        self.drafts[self.requests[index]] = draft

    def alone(self, request: Request) -> StepPlan:
        """The part of the plan that is about one request."""
        count = self.num_tokens[self.requests.index(request)]
        drafts = {request: self.drafts[request]} if request in self.drafts else {}
        return StepPlan([request], [count], drafts)


NO_DRAFTS: Mapping[Request, Draft] = {}
"""No request has proposed tokens."""
