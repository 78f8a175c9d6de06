"""Reductions over rows as wide as a vocabulary, faster than the plain operators.

A row of 150,000 logits is cut into chunks of 64. Maxima (and sums) per chunk run at memory speed,
and the search that is slow per element (arg max, top k, inverse cumulative sum) then looks at the
chunks first and only inside the few that matter. The answers are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
"""Elements; widths given to these functions are multiples of it unless said otherwise."""

_LARGE = 8192  # below this many elements the plain operator is faster


def padded_width(width: int) -> int:
    """The smallest multiple of CHUNK that holds `width` elements."""
    return -(-width // CHUNK) * CHUNK


def row_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its lowest index per row: `[n, width]`, any width -> `[n]`, int64 `[n]`.

    NaN counts as larger than everything.
    """
    num, width = scores.shape
    if width < _LARGE or width % CHUNK:
        best = scores.max(dim=-1)
        return best.values, best.indices
    chunks = scores.view(num, -1, CHUNK)
    chunk = chunks.amax(dim=-1).argmax(dim=-1)
    inside = _take_chunks(chunks, chunk[:, None])[:, 0].max(dim=-1)
    return inside.values, chunk * CHUNK + inside.indices


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest elements of each row, descending, and their indices: `[n, count]` each.

    Among equal elements at the end it is open which are named.
    """
    num, width = scores.shape
    if width < max(_LARGE, 4 * CHUNK * count // 3):
        top = scores.topk(count, dim=-1)
        return top.values, top.indices
    # Chunks outside the `count` with the largest maxima hold nothing larger than those maxima,
    # and these are already `count` elements.
    chunks = scores.view(num, -1, CHUNK)
    chosen = chunks.amax(dim=-1).topk(min(count, width // CHUNK), dim=-1, sorted=False).indices
    top = _take_chunks(chunks, chosen).view(num, -1).topk(count, dim=-1)
    indices = chosen.gather(1, top.indices // CHUNK) * CHUNK + top.indices % CHUNK
    return top.values, indices


def invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one index per row with probability proportional to its weight.

    `weights`: `[n, width]`, not negative; `uniforms`: float64 `[n]` in [0, 1) -> int64 `[n]`. The
    answer is the first index whose cumulative weight exceeds uniform x total, in index order, with
    running totals in float64; an index of weight 0 is never drawn. A row without any weight gives
    some valid index.
    """
    chunks = weights.view(len(weights), -1, CHUNK)
    sums = chunks.sum(dim=-1).double()
    totals = sums.cumsum(dim=-1)
    chunk, before = search(totals, uniforms * totals[:, -1])
    # What is left of the target, as a share of this chunk, so that rounding in its sum is harmless.
    share = (uniforms * totals[:, -1] - before) / sums.gather(1, chunk[:, None])[:, 0]
    inside = _take_chunks(chunks, chunk[:, None])[:, 0].double().cumsum(dim=-1)
    return chunk * CHUNK + search(inside, share * inside[:, -1])[0]


def search(totals: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First index whose running total exceeds the target, and the total before that index.

    `totals`: float64 `[n, m]`, not descending; `targets`: float64 `[n]`, at most the row's last
    total (and brought below it, should rounding have reached it) -> int64 `[n]`, float64 `[n]`.
    """
    below_end = torch.nextafter(totals[:, -1], torch.zeros_like(targets))
    targets = torch.minimum(targets, below_end)[:, None]
    index = torch.searchsorted(totals, targets, right=True).clamp_(max=totals.shape[1] - 1)
    before = totals.gather(1, (index - 1).clamp(min=0))[:, 0]
    return index[:, 0], torch.where(index[:, 0] > 0, before, torch.zeros_like(before))


def _take_chunks(chunks: Tensor, chosen: Tensor) -> Tensor:
    """`[n, num_chunks, CHUNK]`, int64 `[n, k]` -> `[n, k, CHUNK]`."""
    return chunks.gather(1, chosen[:, :, None].expand(-1, -1, CHUNK))
