"""`DecoderWeights`: a model's tensors as one plain, read-only structure.

There are no operators in here, so engines with different kernels share one copy. Loaded from a
checkpoint by `checkpoint.load_weights`, or made at random for benchmarks of speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from minserve.kernels.matrix import Matrix, PackedShape
from minserve.layers import Embedding, RMSNorm
from minserve.models.blocks.base import feed_forward_block, held_bytes, mixer_block
from minserve.quantization.formats import (
    DENSE_PLAN,
    FormatPlan,
    TensorSource,
    WeightFormat,
    load_matrix,
)
from minserve.spec import BlockSpec, LayerSpec, LinearShape, ModelSpec

_HEAD = "lm_head.weight"
Packing = Callable[[str, torch.dtype], PackedShape | None]
"""`Ops.packing`: how matrices of a kind are packed for products in a number type."""


def unpacked(kind: str, dtype: torch.dtype) -> PackedShape | None:
    """The `Packing` of operators that read canonical matrices."""
    return None


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: RMSNorm
    mixer: Any
    """What the mixer's description loaded (`MixerBlock.load`)."""
    mixer_norm: RMSNorm | None
    """Of the mixer's result; None unless `LayerSpec.sandwich_norms`, as `feed_forward_norm`."""
    post_norm: RMSNorm
    feed_forward: Any
    feed_forward_norm: RMSNorm | None

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's weights."""
        norms = (self.input_norm, self.mixer_norm, self.post_norm, self.feed_forward_norm)
        return held_bytes((*norms, self.mixer, self.feed_forward))


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """A whole decoder. Compared by identity: two loads are two copies."""

    embedding: Embedding
    layers: tuple[LayerWeights, ...]
    final_norm: RMSNorm
    head: Matrix
    tied: bool
    """True if the head's matrix is the embedding's."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; what is shared is counted once."""
        own = {id(layer): layer for layer in self.layers}.values()
        layers = sum(layer.nbytes for layer in own)
        head = 0 if self.tied else self.head.nbytes
        return self.embedding.nbytes + layers + self.final_norm.nbytes + head

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which activations are computed."""
        return self.final_norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.final_norm.weight.device


class TensorReader(Protocol):
    """A source of a model's tensors, by their Hugging Face names."""

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor with that name and shape, in any number format. Raises an error that
        names it otherwise."""
        ...

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        ...


@dataclass(frozen=True)
class _Source:
    """A `TensorSource` under one prefix, as a weight format reads it."""

    reader: TensorReader
    prefix: str

    def read(self, suffix: str, shape: tuple[int, ...]) -> Tensor:
        """Tensor `prefix.suffix`."""
        return self.reader.read(f"{self.prefix}.{suffix}", shape)


def build_weights(
    spec: ModelSpec,
    reader: TensorReader,
    dtype: torch.dtype,
    device: torch.device,
    plan: FormatPlan = DENSE_PLAN,
    packing: Packing = unpacked,
) -> DecoderWeights:
    """Read every tensor that the spec needs, one at a time, into `dtype` on `device`.

    `plan` says in which format each matrix is stored, and `packing` how the operators that will
    multiply have it packed: a packed matrix replaces the canonical one as soon as it is read.
    """
    plan.check(spec)
    build = _Builder(spec, reader, dtype, device, plan, packing)
    shape = LinearShape(spec.hidden_size, (spec.vocab_size,))
    tied = spec.tie_embeddings
    # A tied table may be stored under either name.
    only_head = tied and not reader.has("model.embed_tokens.weight") and reader.has(_HEAD)
    name = "lm_head" if only_head else "model.embed_tokens"
    # A table that is only looked up is not packed, so that each of its rows is contiguous.
    table = (
        build.matrix(plan.of(None, "head"), shape, name)
        if tied
        else build.canonical(plan.of(None, "embedding"), shape, name)
    )
    layers: list[LayerWeights] = []
    for index, layer in enumerate(spec.layers):
        shared = layer.weights_of
        layers.append(build.layer(index, layer) if shared is None else layers[shared])
    final_norm = build.norm("model.norm", spec.hidden_size)
    head = table if tied else build.matrix(plan.of(None, "head"), shape, "lm_head")
    multiplier = spec.embedding_multiplier
    if spec.rounds_embedding_multiplier:
        multiplier = float(torch.tensor(multiplier, dtype=dtype))
    embedding = Embedding(table, multiplier)
    return DecoderWeights(embedding, tuple(layers), final_norm, head, tied)


@dataclass(frozen=True)
class _Builder:
    """Makes weights of one model from stored tensors."""

    spec: ModelSpec
    reader: TensorReader
    dtype: torch.dtype
    device: torch.device
    plan: FormatPlan
    packing: Packing

    def vector(self, name: str, size: int) -> Tensor:
        return self.reader.read(name, (size,)).to(device=self.device, dtype=self.dtype, copy=True)

    def norm(self, name: str, size: int) -> RMSNorm:
        weight = self.vector(f"{name}.weight", size)
        if self.spec.norm_offset:
            weight.add_(self.spec.norm_offset)
        return RMSNorm(weight, self.spec.norm_eps)

    def canonical(self, weight_format: WeightFormat, shape: LinearShape, *names: str) -> Matrix:
        sources: list[TensorSource] = [_Source(self.reader, name) for name in names]
        return load_matrix(weight_format, shape, sources, self.dtype, self.device)

    def matrix(self, weight_format: WeightFormat, shape: LinearShape, *names: str) -> Matrix:
        canonical = self.canonical(weight_format, shape, *names)
        return canonical.packed(self.packing(weight_format.kind, self.dtype))

    def layer(self, index: int, layer: LayerSpec) -> LayerWeights:
        prefix, hidden = f"model.layers.{index}", self.spec.hidden_size

        def norm(name: str) -> RMSNorm:
            return self.norm(f"{prefix}.{name}_layernorm", hidden)

        mixer, feed_forward = mixer_block(layer.mixer), feed_forward_block(layer.feed_forward)
        layer.projections(hidden)  # refuses two of one name
        sandwich = layer.sandwich_norms
        return LayerWeights(
            input_norm=norm("input"),
            mixer=mixer.load(_LayerReader(self, index, layer.mixer, hidden), hidden),
            mixer_norm=norm("post_attention") if sandwich else None,
            post_norm=norm("pre_feedforward" if sandwich else "post_attention"),
            feed_forward=feed_forward.load(
                _LayerReader(self, index, layer.feed_forward, hidden), hidden
            ),
            feed_forward_norm=norm("post_feedforward") if sandwich else None,
        )


@dataclass(frozen=True)
class _LayerReader:
    """The `BlockReader` of one block of one layer."""

    build: _Builder
    layer: int
    block: BlockSpec
    hidden_size: int

    def matrix(self, projection: str, *names: str) -> Matrix:
        """See `BlockReader.matrix`. Raises ValueError unless the block has this projection, in as
        many parts."""
        known, block = self.block.projections(self.hidden_size), type(self.block).__name__
        if projection not in known:
            raise ValueError(
                f"{block}.load reads {projection!r}, and {block}.projections has "
                f"{', '.join(known)}: give the matrix the same name in both"
            )
        shape = known[projection].shape
        if len(names) != len(shape.parts):
            raise ValueError(
                f"{block}.load reads {projection!r} from {len(names)} stored names, and "
                f"{block}.projections has {len(shape.parts)} parts: give one name per part"
            )
        weight_format = self.build.plan.of(self.layer, projection)
        return self.build.matrix(weight_format, shape, *map(self._stored, names))

    def norm(self, name: str, size: int) -> RMSNorm:
        """See `BlockReader.norm`."""
        return self.build.norm(self._stored(name), size)

    def vector(self, name: str, size: int) -> Tensor:
        """See `BlockReader.vector`."""
        return self.build.vector(self._stored(name), size)

    def _stored(self, name: str) -> str:
        return f"model.layers.{self.layer}.{name}"


class _RandomTensors:
    """Normal weights of deviation 0.02 and norms of one, as Hugging Face initialises a model."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Ones for a norm, normal numbers for everything else."""
        if "norm" in name:
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        return tensor.normal_(0.0, 0.02, generator=self.generator)

    def has(self, name: str) -> bool:
        """Every tensor exists."""
        return True


def random_weights(
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
    plan: FormatPlan = DENSE_PLAN,
    packing: Packing = unpacked,
) -> DecoderWeights:
    """Random weights of the right shapes: for benchmarks of speed, never of quality."""
    where = torch.device(device)
    return build_weights(spec, _RandomTensors(dtype, where, seed), dtype, where, plan, packing)
