"""The attention mixer: project, normalise heads (Qwen3), rotate, attend over pages, project back.

Queries, keys and values stay strided views of the one fused projection: nothing is copied before
the attention backend stores keys and values in their pages. Knows nothing about pages itself.
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
        "_view",
        "cos_sin",
        "k_norm",
        "layer",
        "ops",
        "output",
        "q_norm",
        "qkv",
        "rotated_heads",
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
        """Index of the decoder layer: which cache the plan writes and reads."""
        self.qkv = qkv
        self.output = output
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.cos_sin = cos_sin
        self.ops = ops
        self.width = spec.num_heads * spec.head_dim
        self.rotated_heads = spec.num_heads + spec.num_kv_heads
        self._sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        self._view = (-1, sum(self._sizes), spec.head_dim)

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[rows, projections]` -> queries, keys, values: views `[rows, heads, head_dim]`."""
        q, k, v = projected.view(self._view).split_with_sizes(self._sizes, 1)
        return q, k, v

    def forward(self, x: Tensor, plan: AttentionPlan, positions: Tensor) -> Tensor:
        """`[rows, hidden]`, int64 `[rows]` -> `[rows, hidden]`, without the residual."""
        ops = self.ops
        heads = self.qkv.apply(ops, x).view(self._view)
        q, k, v = heads.split_with_sizes(self._sizes, 1)
        if self.q_norm is None or self.k_norm is None:
            # Queries and keys are adjacent heads: one rotation turns both.
            ops.rotary_(heads.narrow(1, 0, self.rotated_heads), positions, self.cos_sin)
        else:
            q = self.q_norm.apply(ops, q)
            k = self.k_norm.apply(ops, k)
            ops.rotary_(q, positions, self.cos_sin)
            ops.rotary_(k, positions, self.cos_sin)
        attended, _ = plan.run(q, k, v, self.layer)
        return self.output.apply(ops, attended.view(-1, self.width))
