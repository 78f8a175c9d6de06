"""`Ops` that compute nothing: each counts one launch and the least bytes it can move.

The bound that fused kernels are compared with. Results have the right shape but no values, so run
these operators on torch's `meta` device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minserve.kernels.base import (
    LayerStack,
    LayerTensors,
    PlannedAttention,
    SampleKernel,
    Scores,
)
from minserve.kernels.counts import least
from minserve.kernels.counts.launches import LaunchCounter
from minserve.kernels.matrix import Matrix, PackedShape, Product
from minserve.kernels.reference.product import DenseProduct


class LeastOps:
    """`Ops` that record each call in `counter` and compute nothing."""

    name = "least"
    sample_kernel: SampleKernel | None = None

    def __init__(self, counter: LaunchCounter) -> None:
        self._counter = counter

    def _record(self, operator: str, moved: least.Bytes, flops: int = 0) -> None:
        with self._counter.inside(operator):
            self._counter.record(operator, moved, flops)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Ops.linear`."""
        flops = 2 * x.shape[0] * weight.shape[0] * weight.shape[1]
        self._record("linear", least.linear(x, weight, bias), flops)
        return x.new_empty(x.shape[0], weight.shape[0])

    def packing(self, kind: str, dtype: torch.dtype) -> PackedShape | None:
        """See `Ops.packing`: the memory layout of a matrix changes no count."""
        return None

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`: dense matrices only; an activation is an operator of its own."""
        return DenseProduct(matrix, self) if matrix.kind == "dense" else None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        self._record("rms_norm", least.rms_norm(x, weight))
        return x.new_empty(x.shape)

    def rms_norm_rows(self, x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm_rows`."""
        self._record("rms_norm_rows", least.rms_norm_rows(x, rows, weight))
        return x.new_empty(rows.shape[0], x.shape[1])

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.add_rms_norm`."""
        self._record("add_rms_norm", least.add_rms_norm(x, residual, weight))
        return x.new_empty(x.shape)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.silu_and_mul`."""
        return self._gated("silu_and_mul", gate_up)

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.gelu_and_mul`."""
        return self._gated("gelu_and_mul", gate_up)

    def _gated(self, operator: str, gate_up: Tensor) -> Tensor:
        self._record(operator, least.silu_and_mul(gate_up))
        return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """See `Ops.rotary_`."""
        self._record("rotary_", least.rotary(x, positions, cos_sin))

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `Ops.store_kv`."""
        self._record("store_kv", least.store_kv(k, v, slots))

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
        moved = least.rotary_store(heads, positions, cos_sin, keys, slots, q_norm, k_norm)
        self._record("rotary_store_", moved)

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """See `Ops.plan_attention`. A tree's rows are counted like a chain's, which is an upper
        bound."""

        def attend(
            q: Tensor,
            keys: Tensor,
            values: Tensor,
            scores: Scores,
            need_lse: bool = False,
        ) -> tuple[Tensor, Tensor | None]:
            window = scores.window
            moved = least.attention(q, keys, query_lens, context_lens, window, need_lse)
            flops = 4 * q.shape[1] * q.shape[2] * pairs(query_lens, context_lens, window)
            self._record("attention", moved, flops)
            lse = q.new_empty(q.shape[:2], dtype=torch.float32) if need_lse else None
            return q.new_empty(q.shape), lse

        return attend

    def plan_decode(
        self, block_tables: Tensor, kv_lens: Tensor, longest: int
    ) -> PlannedAttention | None:
        """See `Ops.plan_decode`: None, because the counts depend on every length."""
        return None

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """See `Ops.layer_stack`: None, because every operator is counted separately."""
        return None


def pairs(query_lens: Sequence[int], context_lens: Sequence[int], window: int | None) -> int:
    """Number of (query, key it sees) pairs of all requests."""
    found = 0
    for rows, context in zip(query_lens, context_lens, strict=True):
        for position in range(context - rows, context):
            found += position + 1 if window is None else min(position + 1, window)
    return found
