"""Full retention: every token is read until its request ends, as in attention without a window."""

from __future__ import annotations

from minserve.spec import CacheSpec


class FullRetention:
    """See `Retention`."""

    keeps_all = True

    def __init__(self, spec: CacheSpec, block_size: int) -> None:
        pass

    def first_needed(self, num_tokens: int) -> int:
        """See `Retention.first_needed`."""
        return 0

    def first_read(self, num_tokens: int) -> int:
        """See `Retention.first_read`."""
        return 0

    def first_kept(self, num_tokens: int) -> int:
        """See `Retention.first_kept`."""
        return 0

    def most_blocks(self, num_requests: int, num_new_tokens: int, blocks_per_request: int) -> int:
        """See `Retention.most_blocks`."""
        return num_requests * blocks_per_request
