"""The second tier: page slots in host memory, and a disk below it.

The slots hold two kinds of content. Pages of a swapped-out request belong to it until it returns.
Pages evicted from the device's prefix cache stay here for a request that begins with the same
tokens; the least recently used of them are evicted first, to the disk if there is one.
CachedAttention (Gao et al., arXiv 2403.19708), Pensieve (Yu and Li, arXiv 2312.05516), Mooncake
(Qin et al., arXiv 2407.00079).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from minserve.memory.keys import Key
from minserve.memory.pool import IntegrityError
from minserve.memory.storage.store import BlockStore
from minserve.memory.tiers.disk import DiskTier


class HostTier:
    """`num_slots` page slots; each is free, owned by a request, or holds a cached
    page under its key."""

    def __init__(self, num_slots: int, store: BlockStore, disk: DiskTier | None = None) -> None:
        self.num_slots = num_slots
        self.disk = disk
        self._store = store
        self.reset()

    def reset(self) -> None:
        """Free every slot, and delete the pages on disk."""
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._cached: OrderedDict[Key, int] = OrderedDict()
        self._owned: set[int] = set()
        if self.disk is not None:
            self.disk.clear()

    @property
    def num_cached(self) -> int:
        """Cached pages in host memory."""
        return len(self._cached)

    @property
    def num_owned(self) -> int:
        """Slots of swapped-out requests."""
        return len(self._owned)

    def find(self, key: Key) -> str | None:
        """The tier that has a page: "host", "disk", or None."""
        if key in self._cached:
            return "host"
        return "disk" if self.disk is not None and key in self.disk else None

    def swap_out(self, blocks: Sequence[int]) -> list[int] | None:
        """Save a request's pages; returns its slots, or None if they do not fit."""
        if len(blocks) > len(self._free) + len(self._cached):
            return None
        slots = self._filled(blocks)
        self._owned.update(slots)
        return slots

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host slots into device pages; the slots keep their content."""
        self._store.load(slots, blocks)

    def release(self, slots: Iterable[int]) -> None:
        """Free the slots of a request."""
        for slot in slots:
            if slot not in self._owned:
                raise IntegrityError(f"host slot {slot} freed twice")
            self._owned.remove(slot)
            self._free.append(slot)

    def demote(self, keys: Sequence[Key], blocks: Sequence[int]) -> None:
        """Keep evicted device pages; if there is not room for all, the last ones."""
        kept: dict[Key, int] = {}
        for key, block in zip(keys, blocks, strict=True):
            if key in self._cached:
                self._cached.move_to_end(key)
            else:
                kept[key] = block
        room = len(self._free) + len(self._cached)
        entries = list(kept.items())[max(0, len(kept) - room) :]
        slots = self._filled([block for _, block in entries])
        for (key, _), slot in zip(entries, slots, strict=True):
            self._cached[key] = slot

    def touch(self, keys: Iterable[Key]) -> None:
        """Mark pages as just used: they will be fetched next, so they are evicted last."""
        for key in keys:
            if key in self._cached:
                self._cached.move_to_end(key)

    def fetch(self, keys: Sequence[Key]) -> list[int]:
        """Host slots that hold these pages, read from disk if they are only there; stops at the
        first missing or damaged page. The host keeps the pages, so that evicting the device page
        again needs no new save."""
        slots: list[int] = []
        for key in keys[: len(self._free) + len(self._cached)]:
            slot = self._cached.get(key)
            if slot is None:
                data = self.disk.get(key) if self.disk is not None else None
                if data is None:
                    break
                slot = self._slot()
                try:
                    self._store.write_slot(slot, data)
                except BaseException:
                    self._free.append(slot)
                    raise
                self._cached[key] = slot
            self._cached.move_to_end(key)
            slots.append(slot)
        return slots

    def drop_cached(self) -> None:
        """Forget every cached page, on disk too."""
        self._free.extend(self._cached.values())
        self._cached.clear()
        if self.disk is not None:
            self.disk.clear()

    def close(self) -> None:
        """Delete the pages on disk."""
        if self.disk is not None:
            self.disk.close()

    def _filled(self, blocks: Sequence[int]) -> list[int]:
        """Slots filled with device pages. If that fails, no slot is taken."""
        slots: list[int] = []
        try:
            for _ in blocks:
                slots.append(self._slot())
            self._store.save(blocks, slots)
        except BaseException:
            self._free.extend(slots)
            raise
        return slots

    def _slot(self) -> int:
        if self._free:
            return self._free.pop()
        key, slot = next(iter(self._cached.items()))
        if self.disk is not None:
            self.disk.put(key, self._store.read_slot(slot))
        del self._cached[key]
        return slot

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Verify that every slot has exactly one use. Raises IntegrityError."""
        held = [slot for slots in holders for slot in slots]
        if sorted(held) != sorted(self._owned):
            raise IntegrityError("host slots of swapped-out requests are lost or owned twice")
        every = sorted([*held, *self._free, *self._cached.values()])
        if every != list(range(self.num_slots)):
            raise IntegrityError("a host slot is lost, or is two things at once")
