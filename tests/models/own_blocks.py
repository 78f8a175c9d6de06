"""A mixer and a feed-forward that `minserve` does not have, written as a user would: one file.

The mixer projects queries and keys-and-values apart, carries no positions and multiplies the
queries of each head by a learned temperature. The feed-forward is a mixture: every row goes to one
of several experts. Beside them stands what they should compute, over whole sequences and without a
cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.kernels import TorchOps
from minserve.kernels.base import AttentionTensors, GatedTensors, Scores
from minserve.kernels.matrix import Matrix
from minserve.layers import ForwardContext, Linear
from minserve.models import DecoderWeights
from minserve.models.blocks import Binding, BlockReader
from minserve.spec import (
    CacheSpec,
    CacheTensor,
    HeadShape,
    LayerSpec,
    LinearShape,
    ModelSpec,
    Projection,
)


@dataclass(frozen=True)
class TemperedSpec:
    """Attention without positions, with a temperature per head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    cache_layer: int | None = None

    @property
    def heads(self) -> HeadShape:
        return HeadShape(self.num_heads, self.num_kv_heads, self.head_dim)

    @property
    def cache(self) -> CacheSpec:
        names = ("key", "value")
        return CacheSpec(tuple(CacheTensor(n, self.num_kv_heads, self.head_dim) for n in names))

    @property
    def attention_flops(self) -> int:
        return 4 * self.num_heads * self.head_dim

    def up_to(self, max_len: int) -> TemperedSpec:
        return self

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "query": Projection(LinearShape(hidden_size, (q,))),
            "key_value": Projection(LinearShape(hidden_size, (kv, kv), bias=True)),
            "output": Projection(LinearShape(q, (hidden_size,))),
        }

    def vector_parameters(self, hidden_size: int) -> int:
        return self.num_heads

    def load(self, reader: BlockReader, hidden_size: int) -> TemperedWeights:
        return TemperedWeights(
            query=reader.matrix("query", "attn.query"),
            key_value=reader.matrix("key_value", "attn.key", "attn.value"),
            output=reader.matrix("output", "attn.output"),
            temperature=reader.vector("attn.temperature", self.num_heads),
        )

    def bind(self, weights: TemperedWeights, binding: Binding) -> TemperedAttention:
        return TemperedAttention(self, weights, binding)


@dataclass(frozen=True)
class TemperedWeights:
    query: Matrix
    key_value: Matrix
    output: Matrix
    temperature: Tensor


class TemperedAttention:
    def __init__(self, spec: TemperedSpec, weights: TemperedWeights, binding: Binding) -> None:
        self.spec, self.weights, self.layer = spec, weights, binding.layer
        self.query = Linear(weights.query, binding.ops)
        self.key_value = Linear(weights.key_value, binding.ops)
        self.output = Linear(weights.output, binding.ops)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        self.store(x, context)
        heads = self.query.apply(context, x).view(-1, self.spec.num_heads, self.spec.head_dim)
        q = heads * self.weights.temperature[:, None]
        attended, _ = context.plan.attend(q, self.layer, Scores(0.5))
        return self.output.apply(context, attended.flatten(1))

    def store(self, x: Tensor, context: ForwardContext) -> None:
        both = self.key_value.apply(context, x)
        k, v = both.view(-1, 2 * self.spec.num_kv_heads, self.spec.head_dim).chunk(2, 1)
        context.plan.store(k, v, self.layer)

    def tensors(self) -> AttentionTensors | None:
        return None


@dataclass(frozen=True)
class MixtureSpec:
    """One of several experts per row, chosen by a router."""

    intermediate_size: int
    num_experts: int

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        inner, experts = self.intermediate_size, self.num_experts
        return {
            "router": Projection(LinearShape(hidden_size, (experts,))),
            "up": Projection(LinearShape(hidden_size, (inner,)), experts, 1),
            "down": Projection(LinearShape(inner, (hidden_size,)), experts, 1),
        }

    def vector_parameters(self, hidden_size: int) -> int:
        return 0

    def load(self, reader: BlockReader, hidden_size: int) -> MixtureWeights:
        def experts(name: str) -> tuple[Matrix, ...]:
            return tuple(
                reader.matrix(name, f"moe.{index}.{name}") for index in range(self.num_experts)
            )

        return MixtureWeights(reader.matrix("router", "moe.router"), experts("up"), experts("down"))

    def bind(self, weights: MixtureWeights, binding: Binding) -> Mixture:
        return Mixture(weights, binding)


@dataclass(frozen=True)
class MixtureWeights:
    router: Matrix
    up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]


class Mixture:
    def __init__(self, weights: MixtureWeights, binding: Binding) -> None:
        self.layer = binding.layer
        self.router = Linear(weights.router, binding.ops)
        self.up = [Linear(each, binding.ops) for each in weights.up]
        self.down = [Linear(each, binding.ops) for each in weights.down]

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        choice = self.router.apply(context, x).argmax(-1)
        out = torch.zeros_like(x)
        used = choice.unique()
        for expert in used.tolist():
            rows = (choice == expert).nonzero().flatten()
            inner = self.up[expert].apply(context, x[rows]).relu().square()
            out[rows] = self.down[expert].apply(context, inner)
        if context is not None:
            for name in ("up", "down"):
                context.counters.touched[self.layer, name] = torch.tensor(len(used))
        return out

    def tensors(self) -> GatedTensors | None:
        return None


def own_logits(spec: ModelSpec, weights: DecoderWeights, tokens: list[int]) -> Tensor:
    """`[length, vocab_size]`: whole matrices, no cache; every layer has the blocks above."""
    ops, length = TorchOps(), len(tokens)
    h = weights.embedding.apply(torch.tensor(tokens))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer, stored in zip(spec.layers, weights.layers, strict=True):
        h = h + own_attention(layer, stored.mixer, stored.input_norm.apply(ops, h), hidden)
        x = stored.post_norm.apply(ops, h)
        moe: MixtureWeights = stored.feed_forward
        choice = multiply(moe.router, x).argmax(-1).tolist()
        rows = [
            multiply(moe.down[e], multiply(moe.up[e], x[i : i + 1]).relu() ** 2)
            for i, e in enumerate(choice)
        ]
        h = h + torch.cat(rows)
    return multiply(weights.head, weights.final_norm.apply(ops, h))


def own_attention(layer: LayerSpec, weights: Any, x: Tensor, hidden: Tensor) -> Tensor:
    heads = layer.mixer.heads
    q = multiply(weights.query, x).view(len(x), heads.num_heads, heads.head_dim)
    k, v = multiply(weights.key_value, x).view(len(x), 2, heads.num_kv_heads, -1).unbind(1)
    group = heads.num_heads // heads.num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q * weights.temperature[:, None], k) * 0.5
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return multiply(weights.output, torch.einsum("hqk,khd->qhd", mixed, v).flatten(1))


def multiply(matrix: Matrix, x: Tensor) -> Tensor:
    return F.linear(x, matrix.dequantised(), matrix.bias)
