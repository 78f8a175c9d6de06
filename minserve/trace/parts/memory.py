"""What a step held in KV memory, and what happened to pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import peak, summed


@dataclass(frozen=True, slots=True)
class StepBlocks:
    """What happened to pages in one step, and what their bytes are used for when it ends.

    `owned_bytes` is `StepTrace.kv_bytes_used` + `future_bytes` + `internal_bytes`: the division of
    Kwon et al. (arXiv 2309.06180, figure 2). Pages shared by several requests count once.
    """

    hit_tokens: int = field(default=0, metadata=summed())
    """Tokens not computed because a device page held them."""
    loaded_tokens: int = field(default=0, metadata=summed())
    """Tokens not computed because the host or the disk held them."""
    copied_blocks: int = field(default=0, metadata=summed())
    """Pages copied because two requests share only a part of them."""
    evicted_blocks: int = field(default=0, metadata=summed())
    """Cached pages given to another request."""
    swapped_out_blocks: int = field(default=0, metadata=summed())
    swapped_in_blocks: int = field(default=0, metadata=summed())
    exported_blocks: int = field(default=0, metadata=summed())
    """Pages copied out for another engine."""
    imported_blocks: int = field(default=0, metadata=summed())
    """Pages filled with tokens that another engine computed."""
    cached_blocks: int = 0
    """Pages without an owner, kept for a prefix hit."""
    host_bytes: int = field(default=0, metadata=peak("peak_host_bytes"))
    """Bytes of the pages kept in host memory: cached ones and those of swapped-out requests."""
    owned_bytes: int = 0
    """Bytes of pages with an owner."""
    future_bytes: int = 0
    """The part of `owned_bytes` in slots that their request may still fill: reserved."""
    internal_bytes: int = 0
    """The part of `owned_bytes` in slots that their request can never reach: internal
    fragmentation."""
    external_bytes: int = 0
    """Free bytes that the first waiting request cannot use, because its pages must be neighbours
    and no hole is large enough: external fragmentation."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepMemory:
    """Flat fields of a step: pages and bytes of the KV pool."""

    __slots__ = ()

    blocks_total: int
    blocks_used: int
    """Pages owned by requests while the step ran."""
    kv_tokens: int
    """Tokens whose keys and values are kept when the step ends."""
    kv_bytes_reserved: int
    """Bytes of the whole pool."""
    kv_bytes_allocated: int = field(metadata=peak("peak_kv_bytes_allocated"))
    """Bytes of the pages owned while the step ran."""
    kv_bytes_used: int = field(metadata=peak("peak_kv_bytes_used"))
    """Bytes of the tokens kept when the step ends."""
    blocks: StepBlocks = StepBlocks()
    cached_block_ids: tuple[int, ...] = ()
    """Pages without an owner when the step ends, kept for a prefix hit; with
    `TraceConfig.pages`."""
