"""The error of a request that cannot be served."""

from __future__ import annotations


class InvalidRequestError(ValueError):
    """A request that cannot be served. The message says which value is wrong, and what to do."""


class QueueFullError(InvalidRequestError):
    """A request that was refused because too many wait (`scheduling.max_queued_requests`).

    Like every refusal, it has changed nothing. There is nothing wrong with the request: sent again
    later, it may be accepted.
    """
