"""What a step did for each request; kept if `TraceConfig.per_request` is on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestStep:
    """What one step did for one request; kept if `TraceConfig.per_request` is on."""

    request_id: str
    sample_index: int
    start: int
    """Position of the first token computed."""
    num_tokens: int
    """Tokens computed, proposed ones included."""
    num_recomputed: int
    """Of those, tokens that had been computed before (after preemption, or without a cache)."""
    new_token_ids: tuple[int, ...]
    """Tokens this step added to the request."""
    num_proposed: int = 0
    """Of `num_tokens`, tokens of a draft."""
    num_accepted: int = 0
    """Of these, tokens that became part of the output."""
    blocks: tuple[int, ...] = ()
    """Pages held during the step; kept if `TraceConfig.pages` is on."""

    @property
    def num_known(self) -> int:
        """Tokens computed that were known before the step: 1 for a request that had caught up."""
        return self.num_tokens - self.num_proposed

    @property
    def stop(self) -> int:
        """Position after the last token that the step left computed: the newest one is not."""
        more = max(0, len(self.new_token_ids) - 1) if self.num_proposed else 0
        return self.start + self.num_known + more


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepRequests:
    """Field of a step: its detail by request."""

    __slots__ = ()

    requests: tuple[RequestStep, ...] = ()
