"""The attention mixer: project, normalise heads (Qwen3), rotate, attend over pages, project back.

Queries, keys and values stay in the one fused projection: nothing is copied until one operator of
the attention plan rotates them and stores keys and values. Knows nothing about pages.
"""

from __future__ import annotations

from torch import Tensor

from minserve.attention.base import AttentionPlan
from minserve.kernels.base import Ops
from minserve.layers.linear import Linear
from minserve.layers.norm import RMSNorm
from minserve.spec import AttentionSpec


class AttentionMixer:
    """One layer's attention, bound to one engine's operators and rotary table."""

    __slots__ = (
        "_sizes",
        "_stores",
        "_view",
        "cos_sin",
        "k_norm",
        "layer",
        "ops",
        "output",
        "q_norm",
        "qkv",
        "width",
    )

    def __init__(
        self,
        spec: AttentionSpec,
        layer: int,
        qkv: Linear,
        output: Linear,
        q_norm: RMSNorm | None,
        k_norm: RMSNorm | None,
        cos_sin: Tensor,
        ops: Ops,
    ) -> None:
        self.layer = layer
        """Index of the decoder layer: the cache that the plan writes and reads."""
        self.qkv = qkv
        self.output = output
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.cos_sin = cos_sin
        self.ops = ops
        self.width = spec.num_heads * spec.head_dim
        self._sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        self._view = (-1, spec.projected_heads, spec.head_dim)
        self._stores = spec.cache_layer is None

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[rows, projections]` -> queries, keys, values: views `[rows, heads, head_dim]`."""
        q, k, v = projected.view(self._view).split_with_sizes(self._sizes, 1)
        return q, k, v

    def forward(self, x: Tensor, plan: AttentionPlan, positions: Tensor) -> Tensor:
        """`[rows, hidden]`, int64 `[rows]` -> `[rows, hidden]`, without the residual."""
        ops = self.ops
        heads = self.qkv.apply(ops, x).view(self._view)
        q_norm, k_norm = self.q_norm, self.k_norm
        if not self._stores:
            q = heads if q_norm is None else q_norm.apply(ops, heads)
            ops.rotary_(q, positions, self.cos_sin)
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
        attended, _ = plan.attend(q, self.layer)
        return self.output.apply(ops, attended.view(-1, self.width))
