"""Pinned pages: each pin is one more holder of its pages, so they are not evicted."""

from __future__ import annotations

from collections.abc import Iterable

from minserve.memory.pool import BlockPool


class Pins:
    """Pins by handle, and the pages of each. A handle is never used twice."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: dict[int, list[int]] = {}
        self._num_pins = 0

    def add(self, blocks: list[int]) -> int:
        """Hold these pages, which are owned or cached; returns the handle."""
        for block in blocks:
            self._pool.share(block)
        self._num_pins += 1
        self._blocks[self._num_pins] = blocks
        return self._num_pins

    def remove(self, handle: int) -> None:
        """Release a pin's pages. Raises KeyError for an unknown handle."""
        self._pool.release(reversed(self._blocks.pop(handle)))

    def __contains__(self, handle: int) -> bool:
        return handle in self._blocks

    def holds(self, handle: int) -> bool:
        """True while the handle's pages are pinned; false after `reset`."""
        return bool(self._blocks.get(handle))

    def holders(self) -> Iterable[list[int]]:
        """The pages of each pin."""
        return self._blocks.values()

    @property
    def num_held(self) -> int:
        """Pages that pins hold; a page of two pins counts twice."""
        return sum(map(len, self._blocks.values()))

    @property
    def num_blocks(self) -> int:
        """Pages that pins hold; a page of two pins counts once."""
        return len({block for blocks in self._blocks.values() for block in blocks})

    def reset(self) -> None:
        """Make every pin empty. Handles stay known, so that each can still be unpinned once."""
        self._blocks = {handle: [] for handle in self._blocks}
