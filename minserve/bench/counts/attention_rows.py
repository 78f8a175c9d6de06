"""One row of a model's attention, as it was computed: scores against every key, and the values.

For figures, not for speed: the prompt is computed in one step, and the inputs of one layer's
attention are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.attention import PagedAttention
from minserve.bench.counts.launches import make_batch, make_caches
from minserve.kernels.base import PlannedAttention, Scores
from minserve.kernels.reference.ops import TorchOps
from minserve.loading import LoadedModel
from minserve.models import Decoder


@dataclass(frozen=True)
class AttentionRow:
    """The last token of a prompt, in one layer and head."""

    layer: int
    head: int
    scores: Tensor
    """float32 `[context]`: scaled and, if the layer has a soft cap, capped, before any softmax."""
    values: Tensor
    """float32 `[context, head_dim]`."""
    output: Tensor
    """float32 `[head_dim]`, as the engine's attention returned it."""


class _Watched(TorchOps):
    """Operators that keep how keys are scored and the last row's query and result, layer after
    layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Scores, Tensor, Tensor]] = []

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """See `Ops.plan_attention`."""
        planned = super().plan_attention(
            block_tables, query_starts, kv_lens, query_lens, context_lens, tree
        )

        def attend(
            q: Tensor,
            keys: Tensor,
            values: Tensor,
            scores: Scores,
            need_lse: bool = False,
        ) -> tuple[Tensor, Tensor | None]:
            out, lse = planned(q, keys, values, scores, need_lse)
            self.rows.append((scores, q[-1].clone(), out[-1].clone()))
            return out, lse

        return attend


def attention_rows(loaded: LoadedModel, token_ids: Sequence[int]) -> dict[int, list[AttentionRow]]:
    """Layer -> the last token's row of every head. The prompt starts at the first token.

    Raises ValueError for a model whose rows see only a window.
    """
    spec, weights = loaded.config.model, loaded.weights
    if any(layer.mixer.cache.window is not None for layer in spec.layers):
        raise ValueError(
            f"{loaded.name} attends to windows, and rows over every key are asked for: choose "
            "another model"
        )
    batch, blocks = make_batch(spec, [len(token_ids)], [len(token_ids)], weights.device)
    batch = dataclasses.replace(
        batch, token_ids=torch.tensor(token_ids, dtype=torch.int64, device=weights.device)
    )
    caches = make_caches(spec, blocks, weights.dtype, weights.device)
    ops = _Watched()
    decoder = Decoder(spec, weights, ops, len(token_ids))
    with torch.inference_mode():
        decoder.forward(batch, PagedAttention(spec, caches, ops).plan(batch))
    found = {}
    for layer, (scores, q, out) in enumerate(ops.rows):
        heads = spec.layers[layer].mixer.heads
        # The pages are consecutive: in token-major order they are the prompt's keys and values.
        k, v = (cache.transpose(1, 2).flatten(0, 1)[: len(token_ids)] for cache in caches[layer])
        group = heads.num_heads // heads.num_kv_heads
        found[layer] = [
            AttentionRow(
                layer,
                head,
                _scored(scores, k[:, head // group], q[head]).cpu(),
                v[:, head // group].float().cpu(),
                out[head].float().cpu(),
            )
            for head in range(heads.num_heads)
        ]
    return found


def _scored(scores: Scores, keys: Tensor, query: Tensor) -> Tensor:
    """`[context, head_dim]`, `[head_dim]` -> float32 `[context]`."""
    scaled = keys.float() @ query.float() * scores.scale
    cap = scores.softcap
    return scaled if cap is None else cap * (scaled / cap).tanh()
