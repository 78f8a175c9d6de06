"""What every room may ask of a mixer or a feed-forward: matrices, caches, counted work.

The blocks themselves are in `models.blocks`, one file each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from minserve.spec.caches import CacheSpec
from minserve.spec.storage import Storage


@dataclass(frozen=True)
class LinearShape:
    """Projections of one input, fused into one matrix `[sum(parts), inputs]`, with a bias of
    `[sum(parts)]` or none."""

    inputs: int
    parts: tuple[int, ...]
    """Output rows of each fused projection, in order."""
    bias: bool = False

    @property
    def outputs(self) -> int:
        """Output rows of all parts together."""
        return sum(self.parts)


class Projection(NamedTuple):
    """A matrix of a block, or several of one shape of which each row uses some (experts)."""

    shape: LinearShape
    copies: int = 1
    active: int = 1
    """Copies that multiply each row."""

    @property
    def parameters(self) -> int:
        """Numbers of all copies, biases included."""
        shape = self.shape
        return self.copies * shape.outputs * (shape.inputs + shape.bias)

    def copy_bytes(self, storage: Storage, itemsize: int) -> int:
        """Bytes of one copy as it is stored, with its bias in the model's number format."""
        shape = self.shape
        size = storage.matrix_bytes(shape.outputs, shape.inputs, itemsize)
        return size + shape.bias * shape.outputs * itemsize

    def touched(self, rows: int) -> float:
        """Copies that `rows` rows use together, on average, if all are equally likely."""
        if self.active == self.copies:
            return self.copies
        return self.copies * (1.0 - (1.0 - self.active / self.copies) ** rows)


class HeadShape(NamedTuple):
    """Heads of an attention mixer; `num_heads // num_kv_heads` queries share a KV head
    (grouped-query attention, Ainslie et al., arXiv 2305.13245)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class BlockSpec(Protocol):
    """What every room may ask of a mixer or feed-forward. Frozen and hashable: equal blocks are
    counted once. `models.blocks.base` says how a block is loaded and run."""

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        """Its matrices by name, in the order in which they multiply."""
        ...

    def vector_parameters(self, hidden_size: int) -> int:
        """Numbers outside its matrices and their biases, such as the norms of heads."""
        ...


class MixerSpec(BlockSpec, Protocol):
    """What every room may ask of a mixer."""

    @property
    def cache(self) -> CacheSpec:
        """What it reads of every token, and for how long: its own cache, or its view of the one
        that `cache_layer` names."""
        ...

    @property
    def cache_layer(self) -> int | None:
        """An earlier layer whose cache it reads instead of one of its own; None: its own."""
        ...

    @property
    def heads(self) -> HeadShape:
        """The heads that attend."""
        ...

    @property
    def attention_flops(self) -> int:
        """FLOPs of one row for each token that it attends to."""
        ...

    def up_to(self, max_len: int) -> MixerSpec:
        """The mixer as it acts on requests of at most `max_len` tokens: a window that no request
        outgrows hides nothing."""
        ...


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: a mixer and a feed-forward, each behind an RMSNorm and a residual."""

    mixer: MixerSpec
    feed_forward: BlockSpec
    sandwich_norms: bool = False
    """Norms the results of mixer and feed-forward too, before they are added (Gemma 2)."""
    residual_multiplier: float = 1.0
    """Factor on what mixer and feed-forward add to the residual stream (Granite)."""
    weights_of: int | None = None
    """An earlier layer with equal blocks whose weights it uses; None: its own."""

    @property
    def num_norms(self) -> int:
        """RMSNorms over the residual stream's width."""
        return 4 if self.sandwich_norms else 2

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        """The matrices of both blocks, the mixer's first. Raises ValueError if the two have one of
        the same name, by which they are counted and get their formats."""
        mixer = self.mixer.projections(hidden_size)
        feed_forward = self.feed_forward.projections(hidden_size)
        for name in mixer.keys() & feed_forward.keys():
            raise ValueError(
                f"{type(self.mixer).__name__} and {type(self.feed_forward).__name__} both have a "
                f"projection {name!r}: rename it in one of them"
            )
        return {**mixer, **feed_forward}

    def parameters(self, hidden_size: int) -> int:
        """Parameters, norms and biases included."""
        count = self.num_norms * hidden_size
        for block in (self.mixer, self.feed_forward):
            count += block.vector_parameters(hidden_size)
        return count + sum(each.parameters for each in self.projections(hidden_size).values())
