"""Attention over paged caches, on any implementation of the operators.

Knows which pages belong to which layer. The arithmetic is in
`Ops.plan_attention`; the memory room knows which request holds a page.
"""

from __future__ import annotations

from torch import Tensor

from minserve.attention.base import Caches
from minserve.batch import ForwardBatch
from minserve.kernels.base import LayerStack, Ops, PlannedAttention, Scores
from minserve.kernels.tree import refuse_window
from minserve.spec import ModelSpec


class PagedAttention:
    """The attention backend of an engine: its pages, and the operators that read them.

    `caches` holds for every layer of `spec` the `(keys, values)` it attends to, each `[num_blocks,
    num_kv_heads, block_size, head_dim]`: its own, or those of the layer whose cache it shares.
    """

    name = "paged"

    def __init__(self, spec: ModelSpec, caches: Caches, ops: Ops) -> None:
        if len(caches) != spec.num_layers:
            raise ValueError(
                f"{len(caches)} layer caches for a model of {spec.num_layers} layers: pass one "
                "(keys, values) pair per layer"
            )
        self.spec = spec
        self.caches = caches
        self.ops = ops
        self.group_of_layer = [0] * spec.num_layers
        for index, group in enumerate(spec.cache_groups()):
            for layer in range(spec.num_layers):
                if spec.cache_layer(layer) in group.layers:
                    self.group_of_layer[layer] = index
        self.block_sizes = [
            caches[group.layers[0]][0].shape[2] for group in spec.cache_groups() if group.layers
        ]

    def plan(self, batch: ForwardBatch) -> PagedAttentionPlan:
        """Check the batch on the host and prepare it, once for all layers.

        Raises ValueError for a request without rows, rows that reach before a request's
        first token, a context longer than its block table, and a speculative tree of more
        rows than a mask has bits, or in a model with a sliding window.
        """
        self._check(batch)
        if batch.tree is not None:
            for layer in self.spec.layers:
                refuse_window(batch.tree, layer.mixer.cache.window)
        planned = [
            self.ops.plan_attention(
                tables.block_tables,
                batch.query_starts,
                batch.kv_lens,
                batch.query_lens,
                batch.context_lens,
                batch.tree,
            )
            for tables in batch.groups
        ]
        return PagedAttentionPlan(self, batch, planned)

    def plan_decode(self, batch: ForwardBatch) -> PagedAttentionPlan:
        """See `AttentionBackend.plan_decode`."""
        self._check(batch)
        longest = max(batch.context_lens)
        planned = []
        for tables in batch.groups:
            attend = self.ops.plan_decode(tables.block_tables, batch.kv_lens, longest)
            if attend is None:
                raise ValueError(
                    f"the {self.ops.name} operators read lengths on the host: a plan of theirs "
                    "serves one batch only"
                )
            planned.append(attend)
        return PagedAttentionPlan(self, batch, planned)

    def _check(self, batch: ForwardBatch) -> None:
        if len(batch.groups) != len(self.block_sizes):
            raise ValueError(
                f"the batch has block tables for {len(batch.groups)} cache groups, and the model "
                f"has {len(self.block_sizes)}"
            )
        query_lens, context_lens = batch.query_lens, batch.context_lens
        if sum(query_lens) != batch.num_tokens or len(context_lens) != len(query_lens):
            raise ValueError(
                f"query_lens {query_lens} and context_lens {context_lens} do not describe a batch "
                f"of {batch.num_tokens} rows"
            )
        if query_lens and min(query_lens) < 1:
            # A full prefix hit must leave at least one token to compute: without a row there are no
            # logits to sample from.
            raise ValueError(
                f"request {query_lens.index(min(query_lens))} of the batch has no rows to compute: "
                "schedule at least one token of it, its last one on a full prefix hit"
            )
        room = min(
            tables.block_tables.shape[1] * block_size
            for tables, block_size in zip(batch.groups, self.block_sizes, strict=True)
        )
        for request, (rows, context) in enumerate(zip(query_lens, context_lens, strict=True)):
            if rows > context or context > room:
                what = (
                    f"has {rows} rows but a context of only {context} tokens"
                    if rows > context
                    else f"attends to {context} tokens, and its block table holds {room}"
                )
                raise ValueError(f"request {request} of the batch {what}")


class PagedAttentionPlan:
    """One batch, prepared for every layer."""

    def __init__(
        self, backend: PagedAttention, batch: ForwardBatch, planned: list[PlannedAttention]
    ) -> None:
        self._backend = backend
        self._slots = [tables.slots for tables in batch.groups]
        self._planned = planned

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
        """See `AttentionPlan.store_rotated`."""
        backend = self._backend
        keys, values = backend.caches[layer]
        slots = self._slots[backend.group_of_layer[layer]]
        backend.ops.rotary_store_(
            heads, positions, cos_sin, keys, values, slots, q_norm, k_norm, eps
        )
        return heads.narrow(1, 0, heads.shape[1] - 2 * keys.shape[1])

    def store(self, k: Tensor, v: Tensor, layer: int) -> None:
        """See `AttentionPlan.store`."""
        backend = self._backend
        keys, values = backend.caches[layer]
        backend.ops.store_kv(k, v, keys, values, self._slots[backend.group_of_layer[layer]])

    def attend(
        self, q: Tensor, layer: int, scores: Scores, need_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See `AttentionPlan.attend`."""
        backend = self._backend
        planned = self._planned[backend.group_of_layer[layer]]
        return planned(q, *backend.caches[layer], scores, need_lse)

    def run_stack(
        self, stack: LayerStack, h: Tensor, positions: Tensor, start: int, stop: int
    ) -> float | None:
        """See `AttentionPlan.run_stack`."""
        backend = self._backend
        return stack.run(
            h,
            positions,
            backend.caches,
            backend.group_of_layer,
            self._slots,
            self._planned,
            start,
            stop,
        )
