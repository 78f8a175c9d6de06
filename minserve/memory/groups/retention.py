"""The interface of a retention: which pages of a request are still read, and how many that may be.

Pages are counted in a request's own order, from 0. Knows nothing about requests and pools.
"""

from __future__ import annotations

from typing import Protocol


class Retention(Protocol):
    """What a group must know to free pages early, to judge a prefix, and to be sized."""

    keeps_all: bool
    """True if a page is kept as long as its request: then the next three are always 0."""

    def first_needed(self, num_tokens: int) -> int:
        """The first position that the tokens after the first `num_tokens` read."""
        ...

    def first_read(self, num_tokens: int) -> int:
        """The first page that the tokens after the first `num_tokens` read: a prefix of this length
        is valid without the pages before it."""
        ...

    def first_kept(self, num_tokens: int) -> int:
        """The first page that a request keeps once `num_tokens` tokens are computed; those before
        it are freed. At most `first_read`."""
        ...

    def most_blocks(self, num_requests: int, num_new_tokens: int, blocks_per_request: int) -> int:
        """The most pages that requests can hold at once, `num_new_tokens` of whose tokens are being
        computed; each holds at most `blocks_per_request`."""
        ...
