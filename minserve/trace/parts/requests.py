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
    blocks: tuple[int, ...] = ()
    """Pages held during the step; kept if `TraceConfig.pages` is on."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepRequests:
    """Field of a step: its detail by request."""

    __slots__ = ()

    requests: tuple[RequestStep, ...] = ()
