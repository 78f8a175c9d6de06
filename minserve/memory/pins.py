"""Pinned prefixes: each pin is one more holder of its pages, so they are not evicted."""

from __future__ import annotations

from collections.abc import Sequence

from minserve.memory.group import PageGroup
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.reuse import Reuse


class Pins:
    """Pins by handle, and the pages of each in every cache group. A handle is never used twice."""

    def __init__(
        self, groups: Sequence[PageGroup], primary: int, reuse: Reuse, block_size: int
    ) -> None:
        self._groups = groups
        self._primary = primary
        self._reuse = reuse
        self._block_size = block_size
        self._blocks: dict[int, list[list[int]]] = {}
        self._num_pins = 0

    def add(self, token_ids: Sequence[int], namespace: Sequence[str] = ()) -> tuple[int, int]:
        """Keep the computed full pages of a prefix on the device until `remove`. Returns a handle
        and the number of pinned tokens, which may be 0. Needs a prefix index."""
        if self._groups[self._primary].prefix is None:
            raise ValueError("pinning needs memory.prefix_cache='hash' or 'radix'; it is off")
        tokens = TokenBlocks(root_key(namespace), list(token_ids), self._block_size)
        hits = self._reuse.lookup(tokens, len(token_ids)).hits
        stop = hits[self._primary].first + len(hits[self._primary].blocks)
        held = []
        for group, hit in zip(self._groups, hits, strict=True):
            blocks, first = hit.blocks, group.first_pinned(stop)
            if first < hit.first:
                more = group.hit(tokens, first, stop).blocks
                blocks = more if len(more) == stop - first else blocks
            for block in blocks:
                group.pool.share(block)
            held.append(blocks)
        self._num_pins += 1
        self._blocks[self._num_pins] = held
        return self._num_pins, stop * self._block_size

    def remove(self, handle: int) -> None:
        """Allow pinned pages to be evicted again. Raises KeyError for an unknown handle."""
        for group, blocks in zip(self._groups, self._blocks.pop(handle), strict=True):
            group.pool.release(reversed(blocks))

    def check(self, handle: int) -> None:
        """Raise KeyError for a handle that is unknown or already removed."""
        if handle not in self._blocks:
            raise KeyError(handle)

    def holds(self, handle: int) -> bool:
        """True while the handle's pages are pinned; false after `reset`."""
        return any(self._blocks.get(handle, ()))

    def holders(self, group: int) -> list[list[int]]:
        """The pages of each pin in a group."""
        return [blocks[group] for blocks in self._blocks.values()]

    def num_blocks(self, group: int | None = None) -> int:
        """Pages of a group (None: the primary one) that pins hold; a page of two pins counts
        once."""
        holders = self.holders(self._primary if group is None else group)
        return len({block for blocks in holders for block in blocks})

    def reset(self) -> None:
        """Make every pin empty. Handles stay known, so that each can still be removed once."""
        self._blocks = {handle: [[] for _ in self._groups] for handle in self._blocks}
