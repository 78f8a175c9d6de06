"""The arithmetic and memory traffic of a step, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, slots=True)
class StepWork:
    """Arithmetic and memory traffic of one step, counted from shapes, not measured.

    A multiply-add is 2 FLOPs. Bytes are the least a step must move: each weight once, each cached
    key and value read once per request and layer, new ones written once.
    """

    linear_flops: int = field(default=0, metadata=summed())
    """Projections, feed-forwards and the unembedding."""
    attention_flops: int = field(default=0, metadata=summed())
    """Scores and weighted sums over the context."""
    weight_bytes: int = field(default=0, metadata=summed())
    kv_read_bytes: int = field(default=0, metadata=summed())
    kv_write_bytes: int = field(default=0, metadata=summed())
    activation_bytes: int = field(default=0, metadata=summed())
    """Residual stream, projections' inputs and outputs, logits: written and read once each."""

    @property
    def flops(self) -> int:
        """All arithmetic."""
        return self.linear_flops + self.attention_flops

    @property
    def bytes(self) -> int:
        """All traffic."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes + self.activation_bytes


@dataclass(frozen=True, init=False, repr=False, eq=False)
class CountedWork:
    """Field of a step: its work."""

    __slots__ = ()

    work: StepWork
