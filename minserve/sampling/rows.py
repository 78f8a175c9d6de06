"""Searches over rows as wide as a vocabulary, faster than the plain operators, and exact.

A row of 150,000 numbers is cut into chunks of 64. Maxima and sums per chunk run at memory speed;
the searches that are slow per element (arg max, largest k, inverse cumulative sum) read the chunks'
values first, and then only the chunks that matter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHUNK = 64
"""Elements per chunk. Widths given to these functions are multiples of it unless
stated otherwise."""

_LARGE = 1 << 16  # with fewer elements, the plain arg max is faster
_BELOW_ONE = 1.0 - 2.0**-53


def padded_width(width: int) -> int:
    """The smallest multiple of CHUNK that holds `width` elements."""
    return -(-width // CHUNK) * CHUNK


def in_chunks(scores: Tensor) -> Tensor:
    """`[n, width]` -> view `[n, num_chunks, CHUNK]`."""
    return scores.view(len(scores), scores.shape[1] // CHUNK, CHUNK)


def chunk_maxima(scores: Tensor) -> Tensor:
    """`[n, width]` -> `[n, num_chunks]`."""
    return in_chunks(scores).amax(dim=-1)


def row_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its lowest index per row: `[n, width]`, any width -> `[n]`, int64 `[n]`.

    NaN counts as larger than everything. On a CPU with numpy, whose argmax is vectorised (five
    times faster here than torch's).
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        indices = torch.from_numpy(scores.numpy().argmax(axis=-1))
        return scores.gather(1, indices[:, None])[:, 0], indices
    if scores.numel() < _LARGE or scores.shape[1] % CHUNK or not scores.is_contiguous():
        best = scores.max(dim=-1)
        return best.values, best.indices
    chunk = chunk_maxima(scores).argmax(dim=-1, keepdim=True)
    inside = take_chunks(scores, chunk).max(dim=-1)
    return inside.values, chunk[:, 0].mul_(CHUNK).add_(inside.indices)


def largest_values(scores: Tensor, count: int) -> Tensor:
    """Each row's `count` largest elements, descending: `[n, width]`, any width -> `[n, count]`.

    On a CPU with numpy, whose selection and sort of bare values are vectorised (ten times faster
    here than torch's, which move indices along).
    """
    if scores.device.type != "cpu":
        return scores.topk(count, dim=-1).values
    values = scores.numpy()
    if count < values.shape[1]:
        values = np.partition(values, values.shape[1] - count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(values, axis=-1)[:, ::-1].copy())


def take_chunks(scores: Tensor, chunks: Tensor) -> Tensor:
    """The chosen chunks of each row, side by side: `[n, width]`, int64 `[n, k]` -> `[n, k *
    64]`."""
    num, count = chunks.shape
    wanted = chunks[:, :, None].expand(num, count, CHUNK)
    return in_chunks(scores).gather(1, wanted).view(num, count * CHUNK)


def invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one index per row with probability proportional to its weight.

    `weights`: `[n, width]`, none negative; `uniforms`: float64 `[n]` in [0, 1) -> int64 `[n]`. The
    result is the first index whose cumulative weight exceeds uniform x total, in index order, with
    running totals in float64. An index of weight 0 is never drawn. For a row without usable weights
    (all 0, or a NaN among them) it is some index in range.
    """
    # First the chunk. A double below 1 times the total is below the total, even after rounding.
    sums = in_chunks(weights).sum(dim=-1).double()
    totals = sums.cumsum(dim=-1)
    targets = totals[:, -1:] * uniforms[:, None]
    chunk = torch.searchsorted(totals, targets, right=True).clamp_(max=totals.shape[1] - 1)
    # Then inside the chunk: the rest of the target as a share of the chunk, kept within the chunk's
    # own total, which may differ from its part in the running total by a rounding error.
    share = targets.sub_(totals.gather(1, chunk)).div_(sums.gather(1, chunk)).add_(1.0)
    inside = take_chunks(weights, chunk).double().cumsum(dim=-1)
    targets = share.clamp_(min=0.0, max=_BELOW_ONE).mul_(inside[:, -1:])
    offset = torch.searchsorted(inside, targets, right=True).clamp_(max=CHUNK - 1)
    return chunk.mul_(CHUNK).add_(offset)[:, 0]
