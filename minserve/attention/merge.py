"""Merges attention over disjoint sets of keys by log-sum-exp.

Split-KV decoding, ring attention (Liu et al., arXiv 2310.01889) and shared-prefix attention
(Juravsky et al., arXiv 2402.05099) all compute parts of one softmax separately; with each part's
log-sum-exp the merged result is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merge_partials(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    `out_a`, `out_b`: `[rows, num_heads, head_dim]`; `lse_a`, `lse_b`: `[rows, num_heads]`, natural
    log-sum-exps of the scaled scores. If a part saw no key, its lse is -inf and its output is
    ignored, whatever it holds. Returns the merged output, in the type of `out_a`, and its lse.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    base = lse.masked_fill(lse == -math.inf, 0.0)
    parts = [
        # torch.where instead of a product with zero, because an empty part may hold NaN.
        torch.where(
            (part_lse == -math.inf)[..., None], 0.0, out * (part_lse - base).exp()[..., None]
        )
        for out, part_lse in ((out_a, lse_a), (out_b, lse_b))
    ]
    return (parts[0] + parts[1]).to(out_a.dtype), lse
