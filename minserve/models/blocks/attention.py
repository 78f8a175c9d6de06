"""Softmax attention: project, normalise heads (Qwen3), rotate, attend over pages, project back.

Queries, keys and values stay in the one fused projection: nothing is copied until one operator of
the attention plan rotates them and stores keys and values. Knows nothing about pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from minserve.kernels.base import AttentionTensors, Scores
from minserve.kernels.matrix import Matrix
from minserve.layers import ForwardContext, Linear, RMSNorm
from minserve.models.blocks.base import Binding, BlockReader
from minserve.models.config_file import SMALLEST_FACTOR, ConfigFile
from minserve.spec import (
    DEFAULT_ROPE,
    CacheSpec,
    CacheTensor,
    HeadShape,
    LinearShape,
    Projection,
    RopeSpec,
)

_MOST_HEADS = 1 << 16
_LARGEST_HEAD = 1 << 14


@dataclass(frozen=True)
class AttentionSpec:
    """One attention mixer. Queries are `[num_tokens, num_heads, head_dim]`, keys and values
    `[num_tokens, num_kv_heads, head_dim]`."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    """Sliding window in tokens: a query sees itself and the `window - 1` tokens before it."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    cache_layer: int | None = None
    """An earlier layer whose keys and values it attends to; it projects queries only and stores
    nothing (cross-layer attention, Brandon et al., arXiv 2405.12981). None: its own."""
    rope: RopeSpec | None = DEFAULT_ROPE
    """None: heads carry no position."""
    scale: float | None = None
    """Factor on the dot products before the softmax; None: `head_dim ** -0.5`."""
    softcap: float | None = None
    """See `Scores.softcap`."""

    def __post_init__(self) -> None:
        for name in ("scale", "softcap"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(
                    f"AttentionSpec({name}={value}): expected a number above 0, or None"
                )

    @classmethod
    def read(cls, config: ConfigFile, fixed: Mapping[str, Any]) -> AttentionSpec:
        """The attention that a `config.json` describes, without window and rotary embedding, which
        may differ by layer; `fixed` are fields that the family's own code decides. Raises
        ModelError."""
        heads = config.integer("num_attention_heads", at_most=_MOST_HEADS)
        kv_heads = config.optional_integer("num_key_value_heads") or heads
        if heads % kv_heads:
            raise config.error(
                "num_key_value_heads",
                f"a divisor of num_attention_heads={heads}",
                "correct the file: grouped heads share KV heads evenly",
            )
        bias = config.flag("attention_bias")
        factor = {"at_least": SMALLEST_FACTOR, "at_most": 1e6}
        scale = config.optional_number("attention_multiplier", **factor)
        before = config.optional_number("query_pre_attn_scalar", **factor)
        values: dict[str, Any] = {
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": _head_dim(config, heads),
            "qkv_bias": bias,
            "output_bias": bias,
            "scale": scale if before is None else before**-0.5,
            "softcap": config.optional_number("attn_logit_softcapping", **factor),
        }
        return cls(**{**values, **fixed})

    @property
    def heads(self) -> HeadShape:
        """See `MixerSpec.heads`."""
        return HeadShape(self.num_heads, self.num_kv_heads, self.head_dim)

    @property
    def projected_heads(self) -> int:
        """Heads of the fused projection: queries, and the keys and values it stores."""
        return self.num_heads + (2 * self.num_kv_heads if self.cache_layer is None else 0)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scores(self) -> Scores:
        """What the operators of attention need to know of this layer."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return Scores(float(scale), self.window, self.softcap)

    @property
    def cache(self) -> CacheSpec:
        """See `MixerSpec.cache`: a key and a value per KV head."""
        heads, dim = self.num_kv_heads, self.head_dim
        tensors = (CacheTensor("key", heads, dim), CacheTensor("value", heads, dim))
        return CacheSpec(tensors, self.window)

    @property
    def attention_flops(self) -> int:
        """See `MixerSpec.attention_flops`: a score and a weighted value per head."""
        return 4 * self.num_heads * self.head_dim

    def up_to(self, max_len: int) -> AttentionSpec:
        """See `MixerSpec.up_to`."""
        hides = self.window is not None and self.window < max_len
        return self if hides or self.window is None else replace(self, window=None)

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        """See `BlockSpec.projections`."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        parts = (q, kv, kv) if self.cache_layer is None else (q,)
        return {
            "qkv": Projection(LinearShape(hidden_size, parts, self.qkv_bias)),
            "output": Projection(LinearShape(q, (hidden_size,), self.output_bias)),
        }

    def vector_parameters(self, hidden_size: int) -> int:
        """See `BlockSpec.vector_parameters`: the norms of queries and keys."""
        return self.qk_norm * self.head_dim * (2 if self.cache_layer is None else 1)

    def load(self, reader: BlockReader, hidden_size: int) -> AttentionWeights:
        """See `MixerBlock.load`."""
        stores = self.cache_layer is None
        names = (f"self_attn.{name}_proj" for name in ("qkv" if stores else "q"))

        def head_norm(name: str) -> RMSNorm:
            return reader.norm(f"self_attn.{name}", self.head_dim)

        return AttentionWeights(
            qkv=reader.matrix("qkv", *names),
            output=reader.matrix("output", "self_attn.o_proj"),
            q_norm=head_norm("q_norm") if self.qk_norm else None,
            k_norm=head_norm("k_norm") if self.qk_norm and stores else None,
        )

    def bind(self, weights: AttentionWeights, binding: Binding) -> AttentionMixer:
        """See `MixerBlock.bind`."""
        return AttentionMixer(self, weights, binding)


def _head_dim(config: ConfigFile, heads: int) -> int:
    head_dim = config.optional_integer("head_dim")
    if head_dim is None:
        hidden = config.integer("hidden_size")
        if hidden % heads:
            raise config.error(
                "hidden_size", f"a multiple of num_attention_heads={heads}", "give head_dim"
            )
        head_dim = hidden // heads
    if head_dim % 2 or head_dim > _LARGEST_HEAD:
        raise config.error(
            "head_dim",
            f"an even number of at most {_LARGEST_HEAD:,}",
            "rotary embedding turns pairs",
            shown=str(head_dim),
        )
    return head_dim


@dataclass(frozen=True)
class AttentionWeights:
    """The q and k norms are None unless the mixer has them."""

    qkv: Matrix
    output: Matrix
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None


class AttentionMixer:
    """One layer's attention, bound to one engine's operators and rotary table."""

    __slots__ = (
        "_kv",
        "_sizes",
        "_view",
        "cos_sin",
        "k_norm",
        "layer",
        "ops",
        "output",
        "q_norm",
        "qkv",
        "scores",
        "spec",
        "stores",
        "width",
    )

    def __init__(self, spec: AttentionSpec, weights: AttentionWeights, binding: Binding) -> None:
        self.spec = spec
        self.layer = binding.layer
        self.ops = binding.ops
        self.qkv = Linear(weights.qkv, binding.ops)
        self.output = Linear(weights.output, binding.ops)
        self.q_norm = weights.q_norm
        self.k_norm = weights.k_norm
        self.cos_sin = binding.rotary(spec.rope, spec.head_dim)
        self.scores = spec.scores
        self.width = spec.num_heads * spec.head_dim
        self.stores = spec.cache_layer is None
        """Whether it stores keys and values of its own."""
        self._sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        self._view = (-1, spec.projected_heads, spec.head_dim)
        self._kv: Linear | None = None

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """See `Mixer.forward`."""
        plan, positions = context.plan, context.positions
        heads = self.qkv.apply(context, x).view(self._view)
        q_norm, k_norm = self.q_norm, self.k_norm
        if not self.stores:
            q = heads if q_norm is None else q_norm.apply(self.ops, heads)
            self.ops.rotary_(q, positions, self.cos_sin)
        elif q_norm is None or k_norm is None:
            q = plan.store_rotated(heads, positions, self.cos_sin, self.layer)
        else:
            q = plan.store_rotated(
                heads,
                positions,
                self.cos_sin,
                self.layer,
                q_norm.weight,
                k_norm.weight,
                q_norm.eps,
            )
        attended, _ = plan.attend(q, self.layer, self.scores)
        return self.project_back(attended, context)

    def project(
        self, x: Tensor, positions: Tensor, context: ForwardContext | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`[rows, hidden]` -> queries, keys and values `[rows, heads, head_dim]`, normalised and
        rotated but not stored: what `forward` does before it attends, as separate operators."""
        heads = self.qkv.apply(context, x).view(self._view)
        q, k, v = heads.split_with_sizes(self._sizes, 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.apply(self.ops, q), self.k_norm.apply(self.ops, k)
        self.ops.rotary_(q, positions, self.cos_sin)
        self.ops.rotary_(k, positions, self.cos_sin)
        return q, k, v

    def project_back(self, attended: Tensor, context: ForwardContext | None) -> Tensor:
        """`[rows, num_heads, head_dim]` -> `[rows, hidden]`."""
        return self.output.apply(context, attended.view(-1, self.width))

    def store(self, x: Tensor, context: ForwardContext) -> None:
        """See `Mixer.store`: keys and values are projected, and no queries."""
        if not self.stores:
            return
        if self._kv is None:
            self._kv = self.qkv.part(self.width, self.width + 2 * self._view[2] * self._sizes[1])
        heads = self._kv.apply(context, x).view(-1, 2 * self._sizes[1], self._view[2])
        k, v = heads.chunk(2, 1)
        if self.k_norm is not None:
            k = self.k_norm.apply(self.ops, k)
        self.ops.rotary_(k, context.positions, self.cos_sin)
        context.plan.store(k, v, self.layer)

    def tensors(self) -> AttentionTensors | None:
        """See `FeedForward.tensors`. A mixer that attends to another layer's cache has none."""
        if not self.stores:
            return None
        q_norm, k_norm, spec = self.q_norm, self.k_norm, self.spec
        return AttentionTensors(
            qkv=self.qkv.product,
            output=self.output.product,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            cos_sin=self.cos_sin,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            scores=self.scores,
            eps=0.0 if q_norm is None else q_norm.eps,
        )
