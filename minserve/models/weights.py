"""`DecoderWeights`: a model's tensors as one plain, read-only structure.

There are no operators in here, so engines with different kernels share one copy. Loaded from a
checkpoint by `checkpoint.load_weights`, or made at random for benchmarks of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minserve.kernels.base import PackedShape
from minserve.layers import (
    DenseFormat,
    Embedding,
    Linear,
    LinearShape,
    PackedFormat,
    RMSNorm,
    TableWeight,
    TensorSource,
)
from minserve.spec import LayerSpec, ModelSpec

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. The q and k norms are None unless the mixer has them."""

    input_norm: RMSNorm
    qkv: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    output: Linear
    post_norm: RMSNorm
    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's weights."""
        norms = (self.input_norm, self.q_norm, self.k_norm, self.post_norm)
        linears = (self.qkv, self.output, self.gate_up, self.down)
        return sum(norm.nbytes for norm in norms if norm is not None) + sum(
            linear.nbytes for linear in linears
        )


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """A whole decoder. Compared by identity: two loads are two copies."""

    embedding: Embedding
    layers: tuple[LayerWeights, ...]
    final_norm: RMSNorm
    head: Linear
    tied: bool
    """True if the head's matrix is the embedding's."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; a tied head is counted once."""
        layers = sum(layer.nbytes for layer in self.layers)
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
class _Projection:
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
    packed: PackedShape | None = None,
) -> DecoderWeights:
    """Read every tensor that the spec needs, one at a time, into `dtype` on `device`.

    `packed`: pack matrices in that shape (`Ops.packed_shape`); None: no packing.
    """
    dense: DenseFormat | PackedFormat = DenseFormat()
    if packed is not None:
        dense = PackedFormat(packed)

    def vector(name: str, size: int) -> Tensor:
        return reader.read(name, (size,)).to(device=device, dtype=dtype, copy=True)

    def norm(name: str, size: int) -> RMSNorm:
        return RMSNorm(vector(f"{name}.weight", size), spec.norm_eps)

    def linear(shape: LinearShape, *names: str) -> Linear:
        sources: Sequence[TensorSource] = [_Projection(reader, name) for name in names]
        return Linear(shape, dense.load(shape, sources, dtype, device))

    def table(name: str, table_format: DenseFormat | PackedFormat) -> TableWeight:
        return table_format.load(head_shape, [_Projection(reader, name)], dtype, device)

    head_shape = LinearShape(spec.hidden_size, (spec.vocab_size,))
    tied = spec.tie_embeddings
    # A tied table may be stored under either name.
    only_head = tied and not reader.has("model.embed_tokens.weight") and reader.has(_HEAD)
    # A table that is only looked up is not packed, so that each of its rows is contiguous.
    embedding = table(
        "lm_head" if only_head else "model.embed_tokens", dense if tied else DenseFormat()
    )
    layers = tuple(
        _layer(f"model.layers.{index}", spec.hidden_size, layer, norm, linear)
        for index, layer in enumerate(spec.layers)
    )
    final_norm = norm("model.norm", spec.hidden_size)
    head = Linear(head_shape, embedding if tied else table("lm_head", dense))
    return DecoderWeights(Embedding(embedding), layers, final_norm, head, tied)


def _layer(
    prefix: str,
    hidden: int,
    layer: LayerSpec,
    norm: Callable[[str, int], RMSNorm],
    linear: Callable[..., Linear],
) -> LayerWeights:
    mixer, inner = layer.mixer, layer.feed_forward.intermediate_size
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    q, kv = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
    stores = mixer.cache_layer is None  # else it projects queries only
    projected, qkv = ((q, kv, kv), "qkv") if stores else ((q,), "q")
    qkv_names = (f"{attention}.{name}_proj" for name in qkv)
    bias = layer.feed_forward.bias
    return LayerWeights(
        input_norm=norm(f"{prefix}.input_layernorm", hidden),
        qkv=linear(LinearShape(hidden, projected, mixer.qkv_bias), *qkv_names),
        q_norm=norm(f"{attention}.q_norm", mixer.head_dim) if mixer.qk_norm else None,
        k_norm=norm(f"{attention}.k_norm", mixer.head_dim) if mixer.qk_norm and stores else None,
        output=linear(LinearShape(q, (hidden,), mixer.output_bias), f"{attention}.o_proj"),
        post_norm=norm(f"{prefix}.post_attention_layernorm", hidden),
        gate_up=linear(
            LinearShape(hidden, (inner, inner), bias), f"{mlp}.gate_proj", f"{mlp}.up_proj"
        ),
        down=linear(LinearShape(inner, (hidden,), bias), f"{mlp}.down_proj"),
    )


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
    spec: ModelSpec, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> DecoderWeights:
    """Random weights of the right shapes: for benchmarks of speed, never of quality."""
    where = torch.device(device)
    return build_weights(spec, _RandomTensors(dtype, where, seed), dtype, where)
