"""How full the pages are: the state of KV memory that the trace and the panels show."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.memory.pins import Pins
from minserve.memory.pool import BlockPool
from minserve.memory.tables import BlockTables


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Pages and token slots at one moment; pages shared by several requests count once."""

    blocks_total: int
    blocks_used: int
    """Pages with an owner."""
    blocks_cached: int
    """Pages without an owner, kept for a prefix hit."""
    kv_tokens: int
    """Tokens committed: their keys and values are valid."""
    reserved_slots: int
    """Slots of owned pages that their request may still fill."""
    internal_slots: int
    """Slots of owned pages that their request can never reach."""


def measure_use(pool: BlockPool, tables: BlockTables, pins: Pins, block_size: int) -> MemoryUse:
    """Count pages and tokens now. Called once per step."""
    held_blocks, held_tokens = tables.totals()
    pinned_blocks = pins.num_held
    held_blocks += pinned_blocks
    held_tokens += pinned_blocks * block_size
    # A page with several holders is full, and was counted once for each holder.
    shared_slots = (held_blocks - pool.num_owned) * block_size
    kv_tokens = held_tokens - shared_slots
    open_slots = pool.num_owned * block_size - kv_tokens
    return MemoryUse(
        blocks_total=pool.num_blocks,
        blocks_used=pool.num_owned,
        blocks_cached=pool.num_cached,
        kv_tokens=kv_tokens,
        reserved_slots=open_slots - tables.internal_slots,
        internal_slots=tables.internal_slots,
    )
