"""The free list: which pages nobody owns.

Pages are numbers here; what they store lives in `cache`, which request has them in `manager`.
"""

from __future__ import annotations

from collections.abc import Iterable


class IntegrityError(RuntimeError):
    """Pages do not add up: lost, freed twice, or owned twice. Always a bug of the engine."""


class BlockPool:
    """`num_blocks` pages, each free or owned by exactly one holder."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Last in, first out: a page just freed is the one most likely still in a processor cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._owned = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    @property
    def num_owned(self) -> int:
        """Pages somebody owns."""
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages. The caller has checked `num_free`; too few is an IntegrityError."""
        if count > len(self._free):
            raise IntegrityError(f"{count} pages wanted, {len(self._free)} free: reserve() first")
        blocks = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        for block in blocks:
            self._owned[block] = 1
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Give pages back. Raises IntegrityError for a page that is already free."""
        for block in blocks:
            if not self._owned[block]:
                raise IntegrityError(f"page {block} freed twice")
            self._owned[block] = 0
            self._free.append(block)

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Verify that free and owned pages add up and that nothing is owned twice."""
        seen = bytearray(self.num_blocks)
        for blocks in holders:
            for block in blocks:
                if seen[block]:
                    raise IntegrityError(f"page {block} is owned twice")
                seen[block] = 1
        if seen != self._owned:
            wrong = [b for b in range(self.num_blocks) if seen[b] != self._owned[b]]
            raise IntegrityError(f"pages {wrong[:8]} are marked owned but held by nobody, or back")
        free = set(self._free)
        if len(free) != len(self._free) or any(seen[block] for block in free):
            raise IntegrityError("the free list holds a page twice, or one that is owned")
        if len(free) + sum(seen) != self.num_blocks:
            raise IntegrityError(
                f"{len(free)} free and {sum(seen)} owned pages of {self.num_blocks}: some are lost"
            )
