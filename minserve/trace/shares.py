"""What KV memory was used for over a run: the division of Kwon et al. (arXiv
2309.06180, figure 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minserve.trace.step import StepTrace


@dataclass(frozen=True, slots=True)
class MemoryShares:
    """Bytes of KV memory, summed over steps: counts, equal on any machine."""

    used: int = 0
    """Keys and values of tokens."""
    future: int = 0
    """Reserved for tokens that their request may still write."""
    internal: int = 0
    """In pages with an owner, in slots that their request can never reach."""
    external: int = 0
    """Free, but in holes too small for the first waiting request."""
    free: int = 0
    """Free, and usable by the first waiting request."""

    @classmethod
    def of(cls, steps: Iterable[StepTrace]) -> MemoryShares:
        """Sums over these steps."""
        used = future = internal = external = pool = 0
        for step in steps:
            blocks = step.blocks
            used += step.kv_bytes_used
            future += blocks.future_bytes
            internal += blocks.internal_bytes
            external += blocks.external_bytes
            pool += step.kv_bytes_reserved
        return cls(used, future, internal, external, pool - used - future - internal - external)

    @property
    def taken(self) -> int:
        """Bytes that no other request can use: everything but `free`."""
        return self.used + self.future + self.internal + self.external

    @property
    def useful(self) -> float:
        """Share of the taken bytes that hold a token; 1 if nothing was taken."""
        return self.used / self.taken if self.taken else 1.0
