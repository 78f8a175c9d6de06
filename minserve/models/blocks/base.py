"""What a block is to a decoder: how its weights are loaded, bound to operators, and run.

A mixer or feed-forward is one file: its description (a frozen dataclass with the methods of
`spec.MixerSpec` or `spec.BlockSpec`, and `load` and `bind` from here), its weights, its forward
pass and, if operators can run it inside whole layers, its form for them. The decoder knows these
protocols only, so a new block changes no other file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from minserve.kernels.base import AttentionTensors, GatedTensors, Ops
from minserve.kernels.matrix import Matrix
from minserve.layers import ForwardContext, RMSNorm
from minserve.spec import BlockSpec, MixerSpec, RopeSpec


class BlockReader(Protocol):
    """A layer's stored tensors, as one block reads them; names are those of the checkpoint,
    without the layer's prefix."""

    def matrix(self, projection: str, *names: str) -> Matrix:
        """The matrix of a projection of the block (`BlockSpec.projections`), in its format, from
        one stored name per part: `matrix("qkv", "self_attn.q_proj", ...)`."""
        ...

    def norm(self, name: str, size: int) -> RMSNorm:
        """An RMSNorm of that size."""
        ...

    def vector(self, name: str, size: int) -> Tensor:
        """A stored vector `[size]` in the model's number format."""
        ...


@dataclass(frozen=True)
class Binding:
    """One layer of one engine's decoder."""

    layer: int
    """Its index: the cache that the attention plan writes and reads."""
    ops: Ops
    rotary: Callable[[RopeSpec | None, int], Tensor]
    """The table of a rotary embedding for heads of a size; equal ones are made once."""


class FeedForward(Protocol):
    """A feed-forward bound to operators."""

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        """`[rows, hidden]` -> `[rows, hidden]`, a new tensor, without the residual."""
        ...

    def tensors(self) -> GatedTensors | None:
        """Its form for operators that run whole layers (`Ops.layer_stack`); None if it has none."""
        ...


class Mixer(Protocol):
    """A mixer bound to operators, and to one layer's cache."""

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """`[rows, hidden]` -> `[rows, hidden]`, a new tensor, without the residual. Stores what the
        cache keeps of these rows."""
        ...

    def store(self, x: Tensor, context: ForwardContext) -> None:
        """Only store what the cache keeps of rows `[rows, hidden]`: for layers that are skipped."""
        ...

    def tensors(self) -> AttentionTensors | None:
        """See `FeedForward.tensors`."""
        ...


class FeedForwardBlock(BlockSpec, Protocol):
    """The description of a feed-forward that can be loaded and run."""

    def load(self, reader: BlockReader, hidden_size: int) -> Any:
        """Its weights: data, which engines share."""
        ...

    def bind(self, weights: Any, binding: Binding) -> FeedForward:
        """The feed-forward with these weights in one engine."""
        ...


class MixerBlock(MixerSpec, Protocol):
    """The description of a mixer that can be loaded and run."""

    def load(self, reader: BlockReader, hidden_size: int) -> Any:
        """Its weights: data, which engines share."""
        ...

    def bind(self, weights: Any, binding: Binding) -> Mixer:
        """The mixer with these weights in one engine."""
        ...


def feed_forward_block(spec: BlockSpec) -> FeedForwardBlock:
    """The description as one that can be loaded and run. Raises TypeError if it only counts."""
    return cast(FeedForwardBlock, _runnable(spec))


def mixer_block(spec: MixerSpec) -> MixerBlock:
    """The description as one that can be loaded and run. Raises TypeError if it only counts."""
    return cast(MixerBlock, _runnable(spec))


def _runnable(spec: BlockSpec) -> BlockSpec:
    missing = [name for name in ("load", "bind") if not callable(getattr(spec, name, None))]
    if missing:
        raise TypeError(
            f"{type(spec).__name__} describes a block without {' and '.join(missing)}: it can be "
            "counted, not run; see minserve/models/blocks/base.py"
        )
    return spec


def held_bytes(weights: Any) -> int:
    """Bytes of a block's weights: everything in the dataclass, or in its tuples, lists and
    mappings, that has some."""
    if weights is None:
        return 0
    if isinstance(weights, Mapping):
        return sum(map(held_bytes, weights.values()))
    if isinstance(weights, (tuple, list)):
        return sum(map(held_bytes, weights))
    held = getattr(weights, "nbytes", None)
    if held is not None:
        return int(held)
    if is_dataclass(weights):
        return sum(held_bytes(getattr(weights, each.name)) for each in fields(weights))
    return 0
