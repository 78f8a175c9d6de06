"""The queue's record of one request: when it arrived, how long it has waited, its
predicted length."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.request import Request


@dataclass(slots=True, eq=False)
class QueueEntry:
    """The scheduler's record of one request, from its arrival to its end."""

    request: Request
    arrival_number: int = 0
    """Requests are numbered as they are queued; between equal ranks the smaller
    number goes first."""
    predicted_tokens: float | None = None
    """Predicted output tokens; filled in if `QueuePolicy.needs_lengths`."""
    found_tokens: int = 0
    """Tokens found in the cache when the queue was last ranked; filled in if
    `QueuePolicy.needs_prefixes`."""
    waiting_since_s: float = 0.0
    """Start of the current wait, by the engine's clock."""
    waited_s: float = 0.0
    """Seconds in the queue so far, without the current wait."""
    urgent: bool = False
    """The request has waited for `scheduling.starvation_limit_s`: from now on only arrival
    counts."""
