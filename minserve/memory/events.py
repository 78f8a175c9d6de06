"""What happened to pages since the last step: counters for the step's trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class MemoryEvents:
    """Counts of one step."""

    hit_tokens: int = 0
    """Tokens not computed because a device page held them (shared samples included)."""
    loaded_tokens: int = 0
    """Tokens not computed because a host slot or a file held them."""
    copied_blocks: int = 0
    """Pages copied because two requests share only the first part of them."""
    evicted_blocks: int = 0
    """Cached pages that were evicted and given to another request."""
    swapped_out_blocks: int = 0
    """Pages of preempted requests saved to the host."""
    swapped_in_blocks: int = 0
    """Pages of resumed requests loaded from the host."""
    exported_blocks: int = 0
    """Pages copied out for another engine."""
    imported_blocks: int = 0
    """Pages filled with tokens that another engine computed."""
    transfer_s: float = 0.0
    """Seconds spent on copies between tiers; on a GPU, on queueing them."""

    def __bool__(self) -> bool:
        """True if anything happened; in most steps nothing does."""
        return bool(
            self.hit_tokens
            or self.copied_blocks
            or self.evicted_blocks
            or self.loaded_tokens
            or self.swapped_out_blocks
            or self.swapped_in_blocks
            or self.exported_blocks
            or self.imported_blocks
            or self.transfer_s
        )

    def take(self) -> MemoryEvents:
        """These events; counting starts again from zero."""
        if not self:
            return NOTHING
        taken = MemoryEvents(*(getattr(self, name) for name in MemoryEvents.__slots__))
        for name in MemoryEvents.__slots__:
            setattr(self, name, type(getattr(self, name))())
        return taken

    def __add__(self, other: MemoryEvents) -> MemoryEvents:
        if not other:
            return self
        names = MemoryEvents.__slots__
        return MemoryEvents(*(getattr(self, name) + getattr(other, name) for name in names))


NOTHING = MemoryEvents()
"""The events of most steps: none. One shared object, never changed."""
