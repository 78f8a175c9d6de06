"""The operators in plain torch: any device, any float type, and the oracle of every kernel.

Sums are taken in at least float32, and in true float64 for float64 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.kernels.base import (
    LayerStack,
    LayerTensors,
    Ops,
    PlannedAttention,
    SampleKernel,
)
from minserve.kernels.matrix import Matrix, PackedShape, Product
from minserve.kernels.reference.attention import TorchPlannedAttention, accumulation_dtype
from minserve.kernels.reference.decode import TorchDecode
from minserve.kernels.reference.product import DenseProduct


class TorchOps:
    """`Ops` in plain torch.

    `use_sdpa` chooses how attention multiplies: True is torch's fused scaled_dot_product_attention,
    False two separate products and a softmax, None the faster correct one of the two.
    """

    name = "torch"
    sample_kernel: SampleKernel | None = None

    def __init__(self, use_sdpa: bool | None = None) -> None:
        self.use_sdpa = use_sdpa

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Ops.linear`."""
        return F.linear(x, weight, bias)

    def packing(self, kind: str, dtype: torch.dtype) -> PackedShape | None:
        """See `Ops.packing`: torch packs weights internally."""
        return None

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`: dense matrices only."""
        return DenseProduct(matrix, self) if matrix.kind == "dense" else None

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """See `Ops.layer_stack`."""
        return None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        wide = x.to(accumulation_dtype(x.dtype))
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * inverse * weight).to(x.dtype)

    def rms_norm_rows(self, x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm_rows`."""
        return self.rms_norm(x.index_select(0, rows), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.add_rms_norm`."""
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.silu_and_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.gelu_and_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up)

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """See `Ops.rotary_`."""
        wide = x.to(torch.promote_types(accumulation_dtype(x.dtype), cos_sin.dtype))
        cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
        first, second = wide.chunk(2, dim=-1)
        x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `Ops.store_kv`."""
        block_size = keys.shape[2]
        blocks = slots // block_size
        offsets = slots - blocks * block_size
        keys[blocks, :, offsets] = k
        values[blocks, :, offsets] = v

    def rotary_store_(
        self,
        heads: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Ops.rotary_store_`."""
        unfused_rotary_store_(
            self, heads, positions, cos_sin, keys, values, slots, q_norm, k_norm, eps
        )

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """See `Ops.plan_attention`; the device copies of the lengths are not needed here."""
        return TorchPlannedAttention(block_tables, query_lens, context_lens, self.use_sdpa, tree)

    def plan_decode(self, block_tables: Tensor, kv_lens: Tensor, longest: int) -> PlannedAttention:
        """See `Ops.plan_decode`."""
        return TorchDecode(block_tables, kv_lens, longest)


def unfused_rotary_store_(
    ops: Ops,
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """`Ops.rotary_store_` as two to six separate operators: the baseline for the fused kernel.
    Queries and keys are adjacent heads, so one call rotates both."""
    num_kv_heads = keys.shape[1]
    rotated = heads.shape[1] - num_kv_heads
    num_heads = rotated - num_kv_heads
    q, k, v = heads.split_with_sizes([num_heads, num_kv_heads, num_kv_heads], 1)
    if q_norm is not None and k_norm is not None:
        q.copy_(ops.rms_norm(q, q_norm, eps))
        k.copy_(ops.rms_norm(k, k_norm, eps))
    ops.rotary_(heads.narrow(1, 0, rotated), positions, cos_sin)
    ops.store_kv(k, v, keys, values, slots)
