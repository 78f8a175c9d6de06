"""Decode attention in plain torch that reads no length on the host.

So one plan serves many steps, and its operators could be captured in a graph. It always covers as
many pages as the longest context may have, and masks keys after a request's own length. This is
more work than `TorchPlannedAttention` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minserve.kernels.base import Scores
from minserve.kernels.reference.attention import accumulation_dtype, written_out


class TorchDecode:
    """`PlannedAttention` of one row per request; see `Ops.plan_decode`.

    `block_tables`: int32 `[num_requests, max_blocks]`; `kv_lens`: int32 `[num_requests]`. Both are
    read at every call; nothing that depends on them is kept.
    """

    def __init__(self, block_tables: Tensor, kv_lens: Tensor, longest: int) -> None:
        self._tables, self._kv_lens, self._longest = block_tables, kv_lens, longest

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        requests, num_heads, head_dim = q.shape
        num_kv_heads, block_size = keys.shape[1], keys.shape[2]
        blocks = self._tables[:, : -(-self._longest // block_size)].long()
        positions = torch.arange(blocks.shape[1] * block_size, device=q.device)
        length = self._kv_lens[:, None]
        hidden = positions >= length
        if scores.window is not None:
            hidden |= positions < length - scores.window
        shape = (requests, num_kv_heads, positions.shape[0], head_dim)
        # Pages of other requests may hold anything, and 0 times NaN is NaN.
        k, v = (
            cache[blocks].transpose(1, 2).reshape(shape).masked_fill_(hidden[:, None, :, None], 0.0)
            for cache in (keys, values)
        )
        mask = torch.zeros(hidden.shape, dtype=accumulation_dtype(q.dtype), device=q.device)
        mask = mask.masked_fill_(hidden, -math.inf)[:, None, None]
        grouped = q.reshape(requests, num_kv_heads, num_heads // num_kv_heads, head_dim)
        out, lse = written_out(grouped, k, v, mask, scores)
        out = out.reshape(q.shape).to(q.dtype)
        return out, lse.reshape(requests, num_heads) if need_lse else None
