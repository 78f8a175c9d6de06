"""Attention as `plan(batch)` once per step, then `store_rotated` and `attend` once per layer.

Everything that depends only on the batch (masks, splits, padded tables) is computed in `plan`. A
backend sees pages as tensors, and does not know which request holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from minserve.batch import ForwardBatch
from minserve.kernels.base import LayerStack, Scores

LayerCache = tuple[Tensor, Tensor]
"""A layer's keys and values: `[num_blocks, num_kv_heads, block_size, head_dim]` each."""


class AttentionPlan(Protocol):
    """Attention prepared by a backend for one batch."""

    def store_rotated(
        self,
        heads: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        layer: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """Rotate a fused projection's heads, and store its keys and values in the layer's pages.

        `heads`: `[num_tokens, num_heads + 2 * num_kv_heads, head_dim]`, changed in place; the other
        arguments are those of `Ops.rotary_store_`. Returns the rotated queries
        `[num_tokens, num_heads, head_dim]`, a view of `heads`.
        """
        ...

    def store(self, k: Tensor, v: Tensor, layer: int) -> None:
        """Write keys and values `[num_tokens, num_kv_heads, head_dim]`, already rotated, into
        the layer's pages."""
        ...

    def attend(
        self, q: Tensor, layer: int, scores: Scores, need_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the layer's pages, in which the keys and values of these rows
        are already stored.

        `q`: `[num_tokens, num_heads, head_dim]`, rows may be strided. Returns the output, shaped
        like `q` and contiguous; and with `need_lse` the log-sum-exp `[num_tokens, num_heads]`, with
        which partial results over disjoint keys can be merged.
        """
        ...

    def run_stack(
        self, stack: LayerStack, h: Tensor, positions: Tensor, start: int, stop: int
    ) -> float | None:
        """Run whole layers in one call, as `LayerStack.run` does with this batch's pages."""
        ...


class AttentionBackend(Protocol):
    """Makes plans. One per engine: it holds the engine's pages, never a global."""

    name: str

    def plan(self, batch: ForwardBatch) -> AttentionPlan:
        """Prepare attention for one batch."""
        ...

    def plan_decode(self, batch: ForwardBatch) -> AttentionPlan:
        """A reusable plan over static buffers (CUDA graphs), with one row per request:
        `context_lens` are upper bounds; lengths and pages are read when it runs. Raises ValueError
        if the operators cannot do this."""
        ...


Caches = Sequence[LayerCache]
"""One `LayerCache` per decoder layer."""
