"""Arithmetic and memory traffic of a step, counted from shapes alone.

Definitions are in `StepWork`. Knows nothing about time, devices or how operators are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minserve.spec import UNQUANTIZED, BlockSpec, ModelSpec, Projection, StoragePlan
from minserve.trace import StepWork


class WorkCounter:
    """Counts the work of steps of one model; everything that does not depend on the step
    is counted once.

    `itemsize` is the bytes per number of activations and unquantized weights, `kv_itemsize` that of
    the cache (the same if None), and `storage` says how each matrix is stored.
    """

    def __init__(
        self,
        spec: ModelSpec,
        itemsize: int,
        kv_itemsize: int | None = None,
        storage: StoragePlan = UNQUANTIZED,
    ) -> None:
        hidden, vocab = spec.hidden_size, spec.vocab_size
        kv_itemsize = itemsize if kv_itemsize is None else kv_itemsize
        blocks = _count_blocks(spec)
        # (window, FLOPs per attended token and row, bytes per cached token), summed over layers.
        by_window: dict[int | None, tuple[int, int]] = {}
        for layer in spec.layers:
            mixer, cache = layer.mixer, layer.mixer.cache
            flops, size = by_window.get(cache.window, (0, 0))
            size += cache.bytes_per_token(kv_itemsize)
            by_window[cache.window] = (flops + mixer.attention_flops, size)
        self._windows = tuple((window, *costs) for window, costs in by_window.items())
        self._linear_flops = blocks.linear_flops
        self._head_flops = 2 * hidden * vocab
        self._kv_bytes = spec.kv_bytes_per_token(kv_itemsize)
        self.parts = spec.weight_parts(itemsize, storage)
        """Bytes of all weights, by part."""
        self._sparse = _sparse_projections(spec, itemsize, storage)
        self._tied = spec.tie_embeddings
        table = self.parts["head" if self._tied else "embedding"]
        self._row_bytes = table // vocab
        self._vocab_size = vocab
        self._head_bytes = self.parts["head"] + hidden * itemsize  # with the norm before it
        layers = sum(self.parts[part] for part in ("mixers", "feed_forwards", "norms"))
        sparse = sum(each.projection.copies * each.copy_bytes for each in self._sparse)
        self._layer_bytes = layers - hidden * itemsize - sparse
        # Written and read once each: per row the outputs of the embedding and of the layers, per
        # row of logits the unembedding's input and output.
        self._row_activation_bytes = 2 * (hidden + blocks.activations) * itemsize
        self._logit_activation_bytes = 2 * (hidden + vocab) * itemsize

    def count(
        self,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        num_logit_rows: int,
        touched: Mapping[tuple[int, str], int] | None = None,
    ) -> StepWork:
        """Work of one step.

        `query_lens[r]` rows of request r are computed; its context has `context_lens[r]` tokens
        after them (`ForwardBatch.context_lens`), so that row i of a chunk sees `context - query + i
        + 1` tokens, or at most its window. `touched`: of projections with copies (experts), how
        many were used, where that was counted; elsewhere it is the expected number for so many
        rows.
        """
        rows = sum(query_lens)
        if not rows:
            return StepWork()
        attention_flops = read_bytes = 0
        longest = max(context_lens)
        full: tuple[int, int] | None = None
        for window, flops, size in self._windows:
            if window is not None and window < longest:
                seen, cached = _seen(query_lens, context_lens, window)
            else:
                full = full or _seen(query_lens, context_lens, None)
                seen, cached = full
            attention_flops += flops * seen
            read_bytes += size * cached
        weight_bytes = self._layer_bytes
        if self._sparse:
            weight_bytes += self._sparse_bytes(rows, touched or {})
        if num_logit_rows:
            weight_bytes += self._head_bytes
        if not (num_logit_rows and self._tied):
            # Only the rows that are looked up; a tied table was read completely by the unembedding.
            weight_bytes += min(rows, self._vocab_size) * self._row_bytes
        return StepWork(
            linear_flops=rows * self._linear_flops + num_logit_rows * self._head_flops,
            attention_flops=attention_flops,
            weight_bytes=weight_bytes,
            kv_read_bytes=read_bytes,
            kv_write_bytes=rows * self._kv_bytes,
            activation_bytes=rows * self._row_activation_bytes
            + num_logit_rows * self._logit_activation_bytes,
        )

    def _sparse_bytes(self, rows: int, touched: Mapping[tuple[int, str], int]) -> int:
        used = 0.0
        for each in self._sparse:
            copies = touched.get(each.where)
            used += each.copy_bytes * (each.projection.touched(rows) if copies is None else copies)
        return round(used)


@dataclass(frozen=True)
class _SparseProjection:
    """A projection of which a step may not use all copies."""

    where: tuple[int, str]
    """Layer and name."""
    projection: Projection
    copy_bytes: int


def _sparse_projections(
    spec: ModelSpec, itemsize: int, storage: StoragePlan
) -> tuple[_SparseProjection, ...]:
    return tuple(
        _SparseProjection((index, name), each, each.copy_bytes(storage.of(index, name), itemsize))
        for index, layer in enumerate(spec.layers)
        if layer.weights_of is None
        for name, each in layer.projections(spec.hidden_size).items()
        if each.active != each.copies
    )


@dataclass(frozen=True)
class _BlockWork:
    """Of one row: FLOPs of its matrix products, and numbers that go in and out of them."""

    linear_flops: int = 0
    activations: int = 0


def _count_blocks(spec: ModelSpec) -> _BlockWork:
    """The work of one row in all layers; equal blocks are looked at once."""
    found: dict[BlockSpec, _BlockWork] = {}
    flops = numbers = 0
    for layer in spec.layers:
        numbers += 2 * spec.hidden_size  # the residual stream after mixer and feed-forward
        for block in (layer.mixer, layer.feed_forward):
            if block not in found:
                found[block] = _count_block(block, spec.hidden_size)
            flops += found[block].linear_flops
            numbers += found[block].activations
    return _BlockWork(flops, numbers)


def _count_block(block: BlockSpec, hidden_size: int) -> _BlockWork:
    flops = numbers = 0
    for each in block.projections(hidden_size).values():
        flops += 2 * each.active * each.shape.outputs * each.shape.inputs
        numbers += each.active * (each.shape.outputs + each.shape.inputs)
    return _BlockWork(flops, numbers)


def count_step(
    spec: ModelSpec,
    itemsize: int,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    num_logit_rows: int,
) -> StepWork:
    """Work of a single step; use `WorkCounter` for many steps of one model."""
    return WorkCounter(spec, itemsize).count(query_lens, context_lens, num_logit_rows)


def _seen(
    query_lens: Sequence[int], context_lens: Sequence[int], window: int | None
) -> tuple[int, int]:
    """(tokens seen, summed over rows; tokens cached before the step that any row sees)."""
    # Nearly all requests decode one row, which sees its whole context or window; the few chunks are
    # then corrected one by one. This is three times faster than a formula for all requests.
    if window is None:
        seen = sum(context_lens)
    else:
        seen = sum([length if length < window else window for length in context_lens])
    cached = seen - len(query_lens)
    if max(query_lens) == 1 == min(query_lens):
        return seen, cached
    for n, context in [pair for pair in zip(query_lens, context_lens, strict=True) if pair[0] != 1]:
        reach = context if window is None or context < window else window
        before = context - n
        cached -= reach - 1
        seen -= reach
        if not n:
            continue
        cached += before if window is None or before < window else window - 1
        # The first `growing` rows see one token more each; the others see a full window.
        growing = n if window is None else max(0, min(n, window - before))
        seen += growing * before + growing * (growing + 1) // 2
        if window is not None:
            seen += (n - growing) * window
    return seen, cached
