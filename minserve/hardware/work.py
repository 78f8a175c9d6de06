"""Arithmetic and memory traffic of a step, counted from shapes alone.

Definitions are in `StepWork`. Knows nothing about time, devices or how operators are written.
"""

from __future__ import annotations

from collections.abc import Sequence

from minserve.spec import ModelSpec
from minserve.trace import StepWork


class WorkCounter:
    """Counts the work of steps of one model; everything that does not depend on the step
    is counted once.

    `itemsize` is the bytes per number of weights and activations, `kv_itemsize` that of the cache
    (the same if None).
    """

    def __init__(self, spec: ModelSpec, itemsize: int, kv_itemsize: int | None = None) -> None:
        hidden = spec.hidden_size
        kv_itemsize = itemsize if kv_itemsize is None else kv_itemsize
        linear = activation = 0
        # (window, FLOPs per attended token and row, bytes per cached token), summed over layers.
        by_window: dict[int | None, tuple[int, int]] = {}
        for layer in spec.layers:
            mixer, inner = layer.mixer, layer.feed_forward.intermediate_size
            q, kv = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
            qkv = mixer.projected_heads * mixer.head_dim
            linear += hidden * qkv + q * hidden + 3 * hidden * inner
            # Residual after mixer and feed-forward (2 hidden); inputs of qkv, output, gate-up and
            # down (2 hidden + q + inner); their outputs (qkv, hidden, 2 inner, hidden).
            activation += 6 * hidden + q + qkv + 3 * inner
            flops, size = by_window.get(mixer.window, (0, 0))
            by_window[mixer.window] = (flops + 4 * q, size + 2 * kv * kv_itemsize)
        self._windows = tuple((window, *costs) for window, costs in by_window.items())
        self._linear_flops = 2 * linear
        self._head_flops = 2 * hidden * spec.vocab_size
        self._kv_bytes = spec.kv_bytes_per_token(kv_itemsize)
        layers = sum(spec.layer_parameters(index) for index in range(spec.num_layers))
        self._layer_bytes = layers * itemsize
        self._embedding_row_bytes = hidden * itemsize
        self._vocab_size = spec.vocab_size
        self._head_bytes = (spec.vocab_size + 1) * hidden * itemsize
        self._tied = spec.tie_embeddings
        # Written and read once each: per row the outputs of the embedding and of the layers, per
        # row of logits the unembedding's input and output.
        self._row_activation_bytes = 2 * (hidden + activation) * itemsize
        self._logit_activation_bytes = 2 * (hidden + spec.vocab_size) * itemsize

    def count(
        self, query_lens: Sequence[int], context_lens: Sequence[int], num_logit_rows: int
    ) -> StepWork:
        """Work of one step.

        `query_lens[r]` rows of request r are computed; its context has `context_lens[r]` tokens
        after them (`ForwardBatch.context_lens`), so that row i of a chunk sees `context - query + i
        + 1` tokens, or at most its window.
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
        if num_logit_rows:
            weight_bytes += self._head_bytes
        if not (num_logit_rows and self._tied):
            # Only the rows that are looked up; a tied table was read completely by the unembedding.
            weight_bytes += min(rows, self._vocab_size) * self._embedding_row_bytes
        return StepWork(
            linear_flops=rows * self._linear_flops + num_logit_rows * self._head_flops,
            attention_flops=attention_flops,
            weight_bytes=weight_bytes,
            kv_read_bytes=read_bytes,
            kv_write_bytes=rows * self._kv_bytes,
            activation_bytes=rows * self._row_activation_bytes
            + num_logit_rows * self._logit_activation_bytes,
        )


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
