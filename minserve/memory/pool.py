"""Which pages are free, owned or cached, and how many owners each has.

Pages are numbers here. `storage.cache` has their contents, `manager` the requests that hold them,
and `prefix.index` the tokens by which a cached page is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class IntegrityError(RuntimeError):
    """The counts of pages disagree: a page is lost, freed twice, or owned twice. Always a
    bug of the engine."""


class BlockPool:
    """`num_blocks` pages. Each is free, owned (by one or several holders), or cached: without an
    owner, but still in the prefix index, so that a request can take it.

    When free pages run out, cached pages are evicted, least recently used first. Holders release
    their last page first, so a page is always evicted before the page that it continues.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.reset()
        self.on_evict: Callable[[list[int]], None] | None = None
        """Called with pages that leave the index, before they can be overwritten."""

    def reset(self) -> None:
        """Make every page free; does not change the index, if there is one."""
        # Last in, first out: the page freed last is most likely still in a processor cache.
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._owners = [0] * self.num_blocks
        self._indexed = bytearray(self.num_blocks)
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages without an owner that are not in the index."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages without an owner, kept for a request that begins with the same tokens."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give: free ones, and cached ones, which leave the index
        then."""
        return len(self._free) + len(self._cached)

    @property
    def num_owned(self) -> int:
        """Pages with at least one owner."""
        return self.num_blocks - len(self._free) - len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages. The caller has checked `num_available`; raises IntegrityError if
        there are too few."""
        if count > self.num_available:
            raise IntegrityError(
                f"{count} pages wanted, {self.num_available} available: reserve() first"
            )
        if len(self._free) < count:
            self._evict(count - len(self._free))
        blocks = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def take(self, first: int, count: int) -> list[int]:
        """Take `count` pages from `first` on, for layouts that need neighbouring pages.
        All must be free."""
        blocks = list(range(first, first + count))
        wanted = set(blocks)
        kept = [block for block in self._free if block not in wanted]
        if len(kept) + count != len(self._free):
            raise IntegrityError(f"pages {first} to {first + count - 1} are not all free")
        self._free = kept
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Add an owner to a page that is owned or cached."""
        if not self._owners[block]:
            if not self._indexed[block]:
                raise IntegrityError(f"page {block} is free and cannot be shared")
            del self._cached[block]
        self._owners[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Remove one owner from each page, in this order. Raises IntegrityError for a
        page without owners."""
        for block in blocks:
            owners = self._owners[block]
            if not owners:
                raise IntegrityError(f"page {block} freed twice")
            self._owners[block] = owners - 1
            if owners == 1:
                if self._indexed[block]:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def mark_indexed(self, block: int) -> None:
        """Mark an owned page as being in the index: when its last owner releases it, it is cached
        instead of free."""
        if not self._owners[block]:
            raise IntegrityError(f"page {block} has no owner and cannot enter the index")
        self._indexed[block] = 1

    def indexed_blocks(self) -> set[int]:
        """Every page in the index, owned or cached."""
        return {block for block, known in enumerate(self._indexed) if known}

    def cached_blocks(self) -> tuple[int, ...]:
        """Pages without an owner, kept for a prefix hit; the next one to be evicted comes first."""
        return tuple(self._cached)

    def owners(self, block: int) -> int:
        """Number of holders of the page."""
        return self._owners[block]

    def drop_cached(self) -> int:
        """Evict every cached page; returns how many."""
        count = len(self._cached)
        self._evict(count)
        return count

    def _evict(self, count: int) -> None:
        blocks = [self._cached.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._indexed[block] = 0
        try:
            if self.on_evict is not None:
                self.on_evict(blocks)
        finally:
            # A lower tier may fail to keep a page; the page is freed in any case.
            self._free.extend(reversed(blocks))

    def free_blocks(self) -> list[int]:
        """Pages without an owner that are not in the index, in ascending order."""
        return sorted(self._free)

    def find_hole(self, count: int) -> int | None:
        """First page of the lowest `count` neighbouring free pages (first fit); None
        if there are none."""
        run, previous = 0, -2
        for block in self.free_blocks():
            run = run + 1 if block == previous + 1 else 1
            previous = block
            if run == count:
                return block - count + 1
        return None

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Verify that free, cached and owned pages add up, and that each page has as many owners as
        holders. Raises IntegrityError."""
        seen = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                seen[block] += 1
        if seen != self._owners:
            wrong = [b for b in range(self.num_blocks) if seen[b] != self._owners[b]]
            raise IntegrityError(
                f"page {wrong[0]} is held {seen[wrong[0]]} times and counts "
                f"{self._owners[wrong[0]]} owners ({len(wrong)} such pages)"
            )
        free = set(self._free)
        if len(free) != len(self._free) or any(seen[block] for block in free):
            raise IntegrityError("the free list holds a page twice, or one that is owned")
        if any(seen[block] or not self._indexed[block] for block in self._cached):
            raise IntegrityError("a cached page is owned, or unknown to the index")
        if free & self._cached.keys() or any(self._indexed[block] for block in free):
            raise IntegrityError("a free page is cached, or still in the index")
        owned = sum(1 for count in seen if count)
        if len(free) + len(self._cached) + owned != self.num_blocks:
            raise IntegrityError(
                f"{len(free)} free, {len(self._cached)} cached and {owned} owned pages of "
                f"{self.num_blocks}: some are lost"
            )
