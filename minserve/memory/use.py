"""How full the pages are: the state of KV memory that the trace and the panels show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minserve.memory.group import PageGroup
from minserve.memory.pins import Pins


class MemoryUse(NamedTuple):
    """Pages and bytes of all cache groups at one moment; pages shared by several requests count
    once."""

    blocks_total: int
    blocks_used: int
    """Pages with an owner."""
    blocks_cached: int
    """Pages without an owner, kept for a prefix hit."""
    kv_tokens: int
    """Tokens kept in the primary group: their keys and values are valid."""
    total_bytes: int
    owned_bytes: int
    """Bytes of `blocks_used`; of these:"""
    kv_bytes: int
    """Bytes of kept tokens."""
    internal_bytes: int
    """Bytes of slots that their request can never reach. The rest it may still fill."""
    host_bytes: int
    """Bytes of pages in host memory, with or without an owner."""

    @property
    def future_bytes(self) -> int:
        """Bytes of owned slots that their request may still fill."""
        return self.owned_bytes - self.kv_bytes - self.internal_bytes


def measure_use(
    groups: Sequence[PageGroup], primary: int, pins: Pins, block_size: int
) -> MemoryUse:
    """Count pages, tokens and bytes now. Called once per step."""
    total = used = cached = kv_tokens = 0
    total_bytes = owned_bytes = kv_bytes = internal_bytes = host_bytes = 0
    for index, group in enumerate(groups):
        pool, tables, block_bytes = group.pool, group.tables, group.block_bytes
        held_blocks, held_tokens = tables.totals()
        pinned = sum(map(len, pins.holders(index)))
        owned = pool.num_owned
        # A page with several holders is full, and was counted once for each holder.
        shared = held_blocks + pinned - owned
        skipped = 0 if group.retention.keeps_all else tables.num_skipped_tokens()
        tokens = held_tokens - skipped + (pinned - shared) * block_size
        if index == primary:
            kv_tokens = tokens
        total, used, cached = total + pool.num_blocks, used + owned, cached + pool.num_cached
        total_bytes += pool.num_blocks * block_bytes
        owned_bytes += owned * block_bytes
        kv_bytes += tokens * group.slot_bytes
        internal_bytes += tables.internal_slots * group.slot_bytes
        if group.host is not None:
            host_bytes += (group.host.num_cached + group.host.num_owned) * block_bytes
    return MemoryUse(
        total, used, cached, kv_tokens, total_bytes, owned_bytes, kv_bytes, internal_bytes,
        host_bytes,
    )  # fmt: skip
