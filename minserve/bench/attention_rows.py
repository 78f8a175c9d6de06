"""One row of a model's attention, as it was computed: scores against every key, and the values.

For looking at, not for speed: the prompt is run whole, and what one layer is asked is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.attention import PagedAttention
from minserve.attention.base import AttentionPlan
from minserve.bench.launches import PAGE, make_batch
from minserve.build import LoadedModel
from minserve.kernels.reference import TorchOps
from minserve.models import Decoder


@dataclass(frozen=True)
class AttentionRow:
    """The last token of a prompt, in one layer and head."""

    layer: int
    head: int
    scores: Tensor
    """float32 `[context]`: scaled, before any softmax."""
    values: Tensor
    """float32 `[context, head_dim]`."""
    output: Tensor
    """float32 `[head_dim]`, as the engine's attention gave it."""


class _Kept:
    """A plan that keeps the last row's query and answer in every layer."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

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
        return self._plan.store_rotated(heads, positions, cos_sin, layer, q_norm, k_norm, eps)

    def attend(self, q: Tensor, layer: int, need_lse: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `AttentionPlan.attend`."""
        out, lse = self._plan.attend(q, layer, need_lse)
        self.layers[layer] = (q[-1].clone(), out[-1].clone())
        return out, lse


def attention_rows(loaded: LoadedModel, token_ids: Sequence[int]) -> dict[int, list[AttentionRow]]:
    """Layer -> the last token's row of every head. The prompt starts at the first token."""
    spec, weights = loaded.config.model, loaded.weights
    batch, blocks = make_batch(spec, [len(token_ids)], [len(token_ids)], weights.device)
    batch = dataclasses.replace(
        batch, token_ids=torch.tensor(token_ids, dtype=torch.int64, device=weights.device)
    )
    caches = []
    for each in spec.layers:
        shape = (blocks, each.mixer.num_kv_heads, PAGE, each.mixer.head_dim)
        keys, values = (torch.zeros(shape, dtype=weights.dtype, device=weights.device)
                        for _ in range(2))  # fmt: skip
        caches.append((keys, values))
    ops = TorchOps()
    decoder = Decoder(spec, weights, ops, len(token_ids))
    with torch.inference_mode():
        kept = _Kept(PagedAttention(spec, tuple(caches), ops).plan(batch))
        decoder.run_layers(decoder.embed(batch.token_ids), kept, batch.positions)
    found = {}
    for layer, (q, out) in kept.layers.items():
        mixer = spec.layers[layer].mixer
        # The pages are in a row: token-major again, they are the prompt's keys and values.
        k, v = (cache.transpose(1, 2).flatten(0, 1)[: len(token_ids)] for cache in caches[layer])
        group = mixer.num_heads // mixer.num_kv_heads
        found[layer] = [
            AttentionRow(
                layer,
                head,
                (k[:, head // group].float() @ q[head].float() * mixer.scale).cpu(),
                v[:, head // group].float().cpu(),
                out[head].float().cpu(),
            )
            for head in range(mixer.num_heads)
        ]
    return found
