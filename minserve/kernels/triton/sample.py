"""From logits to tokens in one kernel, without a sort: draws like `sampling.Sampler`, a
program per row.

A sort is needed only to find one number per row, the lowest score that is kept. A score's distance
below the row's best, times the inverse temperature, is a float that is not negative, and the bits
of such floats, read as integers, have the same order. So the threshold is found by bisection over
integers: a pass over the row counts the tokens (top-k) or adds their weight (top-p) at PIVOTS
distances at once, and reduces the range to a PIVOTS-th. Of 2^31 patterns one is left after 11
passes, exactly: tokens of equal score are kept or dropped together, as in `sampling.filters`. A row
is read from memory once; later passes find it in the cache (150,000 logits in bfloat16 are 300 KB).
The host waits for nothing.

Reads of a row: 1 for a greedy token, 3 without filters, up to 11 more for top-k, 12 for top-p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minserve.batch import SamplingBatch

TILE = 4096
"""Tokens processed together in a loop over a row."""
LANES = 2048
"""Tokens processed together in a search: each pivot keeps this many partial sums."""
PIVOTS = 8
"""Distances tried in one pass. More of them make fewer passes with more arithmetic each."""
WARPS = 32
"""A row has a multiprocessor to itself: there are seldom more rows to draw than multiprocessors."""


@triton.jit
def distances(row, start, vocab, best, coldness, SIZE: tl.constexpr):
    """Distance of the tokens from `start` on below the best, divided by the temperature, as the
    bits of a float32 `[SIZE]`; and the weights exp(-distance)."""
    column = start + tl.arange(0, SIZE)
    x = tl.load(row + column, column < vocab, other=float("-inf")).to(tl.float32)
    # Subtract from the maximum first: then (max - x) / t is never inf - inf, however small t is.
    distance = (best - x) * coldness
    return distance.to(tl.int32, bitcast=True), tl.exp(-distance)


@triton.jit
def search(
    row, vocab, best, coldness, limit, target,
    MASS: tl.constexpr, PIVOTS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The smallest distance, as bits and at most `limit`, such that the tokens within it reach
    `target` in number or, with MASS, in weight."""
    low, high = limit * 0, limit
    pivot = tl.arange(0, PIVOTS)
    while low < high:
        step = (high - low) // PIVOTS + 1
        tried = tl.minimum(low + pivot * step + (step - 1), high)
        if MASS:
            found = tl.zeros([PIVOTS, LANES], tl.float32)
        else:
            found = tl.zeros([PIVOTS, LANES], tl.int32)
        for start in range(0, vocab, LANES):
            bits, weights = distances(row, start, vocab, best, coldness, LANES)
            near = bits[None, :] <= tried[:, None]
            if MASS:
                found += tl.where(near, weights[None, :], 0.0)
            else:
                found += near.to(tl.int32)
        missed = tl.sum((tl.sum(found, 1) < target).to(tl.int32), 0)
        # All are missed only if rounding makes the total less than itself: then all are kept.
        low += tl.minimum(missed, PIVOTS - 1) * step
        high = tl.minimum(low + step - 1, high)
    return high


@triton.jit
def kept_weights(row, start, vocab, best, coldness, limit, TILE: tl.constexpr):
    """Weights of the tokens from `start` on; 0 for those further than `limit`."""
    bits, weights = distances(row, start, vocab, best, coldness, TILE)
    return tl.where(bits <= limit, weights, 0.0)


@triton.jit
def draw(row, vocab, best, coldness, limit, uniform, TILE: tl.constexpr):
    """The first token at which the running weight of the kept tokens exceeds uniform x total."""
    total = uniform * 0.0
    for start in range(0, vocab, TILE):
        weights = kept_weights(row, start, vocab, best, coldness, limit, TILE)
        total += tl.sum(weights, 0).to(tl.float64)
    target = total * uniform
    running, rest, chosen = uniform * 0.0, uniform * 0.0, limit * 0
    for start in range(0, vocab, TILE):
        weights = kept_weights(row, start, vocab, best, coldness, limit, TILE)
        here = tl.sum(weights, 0).to(tl.float64)
        # The target is in the last tile with a weight that begins at or before the target.
        into = (here > 0.0) & (running <= target)
        chosen = tl.where(into, start, chosen)
        rest = tl.where(into, target - running, rest)
        running += here
    column = chosen + tl.arange(0, TILE)
    weights = kept_weights(row, chosen, vocab, best, coldness, limit, TILE)
    # A running sum may be rounded differently from the sum: then it is the last token with a
    # weight.
    past = (tl.cumsum(weights, 0).to(tl.float64) > rest) & (weights > 0.0)
    first = tl.min(tl.where(past, column, vocab), 0)
    return tl.minimum(first, tl.max(tl.where(weights > 0.0, column, 0), 0))


@triton.jit
def sample_kernel(
    logits, params, tokens, thresholds, row_stride, vocab, num_rows,
    TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Program r draws the token of row r. `params` is `SamplingBatch.params`; `thresholds` receives
    the lowest score kept, minus the row's best and divided by the temperature, as in
    `sampling.filters`."""
    program = tl.program_id(0)
    row = logits + program.to(tl.int64) * row_stride
    temperature = tl.load(params + program)
    coldness = (1.0 / tl.maximum(temperature, 1e-30)).to(tl.float32)

    top = tl.full([TILE], float("-inf"), tl.float32)
    argmax = tl.zeros([TILE], tl.int32)
    wrong = tl.zeros([TILE], tl.int32)
    for start in range(0, vocab, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(row + column, column < vocab, other=float("-inf")).to(tl.float32)
        argmax = tl.where(x > top, column, argmax)
        top = tl.where(x > top, x, top)
        wrong |= (x != x).to(tl.int32)
    best = tl.max(top, 0)
    token = tl.min(tl.where(top == best, argmax, vocab), 0)
    valid = (tl.max(wrong, 0) == 0) & (best > float("-inf")) & (best < float("inf"))
    token = tl.where(valid, token, -1)

    limit = token * 0
    if valid & (temperature > 0.0):
        limit = token * 0 + 0x7F800000  # infinity: all are kept
        if TOP_K:
            top_k = tl.minimum(tl.load(params + num_rows + program), vocab).to(tl.int32)
            if top_k > 0:
                limit = search(row, vocab, best, coldness, limit, top_k, False, PIVOTS, LANES)
        if TOP_P:
            top_p = tl.load(params + 2 * num_rows + program).to(tl.float32)
            if top_p < 1.0:
                found = tl.zeros([LANES], tl.float32)
                for start in range(0, vocab, LANES):
                    found += kept_weights(row, start, vocab, best, coldness, limit, LANES)
                mass = top_p * tl.sum(found, 0)
                limit = search(row, vocab, best, coldness, limit, mass, True, PIVOTS, LANES)
        if MIN_P:
            min_p = tl.load(params + 3 * num_rows + program)
            if min_p > 0.0:
                furthest = (0.0 - tl.log(min_p)).to(tl.float32)  # not -log: avoids -0.0
                limit = tl.minimum(limit, furthest.to(tl.int32, bitcast=True))
        uniform = tl.load(params + 7 * num_rows + program)
        token = draw(row, vocab, best, coldness, limit, uniform, TILE)
    tl.store(tokens + program, token.to(tl.int64))
    tl.store(thresholds + program, -(limit.to(tl.float32, bitcast=True)))


def sample(logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
    """One token per row of `logits` `[num_samples, vocab]` in float32, float16 or bfloat16, with
    biases and penalties already applied: int64 `[num_samples]`, -1 for a row whose logits are not
    numbers; and the threshold of each row, float32 `[num_samples]` (0 for greedy rows).

    Tokens are those of `sampling.Sampler`, unless a sum in another order moves a boundary: sums are
    taken in float32 within a tile, in float64 over tiles.
    """
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    thresholds = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        sample_kernel[(rows,)](
            logits, batch.params.contiguous(), tokens, thresholds, logits.stride(0), vocab, rows,
            TOP_K=batch.max_top_k > 0, TOP_P=batch.uses_top_p, MIN_P=batch.uses_min_p,
            TILE=TILE, LANES=LANES, PIVOTS=PIVOTS, num_warps=WARPS,
        )  # fmt: skip
    return tokens, thresholds
