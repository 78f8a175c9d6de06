"""Window retention: a token is read until `window` tokens have come after it (sliding-window
attention, Beltagy et al., arXiv 2004.05150; Mistral, Jiang et al., arXiv 2310.06825).

A query at position p sees the keys from p - window + 1 on. So a page is free as soon as all its
keys lie before that, although its request goes on: a request holds about a window of pages, however
long it is.
"""

from __future__ import annotations

from minserve.spec import CacheSpec


class WindowRetention:
    """See `Retention`."""

    keeps_all = False

    def __init__(self, spec: CacheSpec, block_size: int) -> None:
        assert spec.window is not None
        self.window = spec.window
        self._block_size = block_size

    def first_needed(self, num_tokens: int) -> int:
        """See `Retention.first_needed`."""
        return max(0, num_tokens - self.window + 1)

    def first_read(self, num_tokens: int) -> int:
        """See `Retention.first_read`."""
        return self.first_needed(num_tokens) // self._block_size

    def first_kept(self, num_tokens: int) -> int:
        """See `Retention.first_kept`. One token more is kept than the next query sees: other
        samples of a prompt compute its last token again, and find the pages for that."""
        return max(0, num_tokens - self.window) // self._block_size

    def most_blocks(self, num_requests: int, num_new_tokens: int, blocks_per_request: int) -> int:
        """See `Retention.most_blocks`. A window may begin at the end of a page, and new tokens end
        at the beginning of one."""
        size = self._block_size
        around = -(-(self.window - 1) // size) + 2
        return num_requests * min(blocks_per_request, around) + num_new_tokens // size
