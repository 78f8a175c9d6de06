"""Paged attention over a ragged batch: prefill chunks and decodes side by side.

FlashAttention's online softmax (Dao, arXiv 2307.08691) over pages (Kwon et al., arXiv 2309.06180).
A program takes a tile of one request's rows and one KV head, and packs the query heads that share
it into the tile's rows, so that keys and values are loaded once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(blocks, table, positions, inside, head_offset, block_stride, block_size, head_dim,
              column, DIM: tl.constexpr):  # fmt: skip
    """Rows `[positions, DIM]` of a request's keys or values; zero outside, because memory there was
    never written and may be NaN."""
    block = tl.load(table + positions // block_size, inside, other=0).to(tl.int64)
    start = block * block_stride + head_offset + (positions % block_size) * head_dim
    mask = inside[:, None] & (column < head_dim)[None, :]
    return tl.load(blocks + start[:, None] + column[None, :], mask, other=0.0)


@triton.jit
def attend(
    q, keys, values, table, position, alive, first, last, scale, window, branch, first_query,
    head_offset, block_stride, block_size, head_dim, column,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WINDOW: tl.constexpr,
    TREE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Online softmax of `q` `[ROWS, DIM]` over keys `first` to `last`: the unnormalised sum, the
    running maximum and the running total, in powers of two. With TREE, `branch` holds each row's
    tree mask (`kernels.tree`), whose bits count from key `first_query`. SOFTCAP is that of
    `Scores`; 0: none. It is a constant of the kernel: each cap is a compilation of its own."""
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    oldest = first
    if WINDOW:  # pages before it may be another request's, and hold NaN
        oldest = tl.min(tl.where(alive, position, last), 0) - window + 1
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = (key >= oldest) & (key < last) if WINDOW else key < last
        k = load_tile(keys, table, key, inside, head_offset, block_stride, block_size, head_dim,
                      column, DIM)  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * 1.4426950408889634)
        if SOFTCAP > 0:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), right also where the exponential is infinite; small
            # numbers would lose their digits, and have its Taylor series.
            small = scores * (0.6931471805599453 / SOFTCAP)
            square = small * small
            series = 0.1333333333333333 + square * (-17 / 315 + square * (62 / 2835))
            series = small + small * square * (-0.3333333333333333 + square * series)
            large = 1.0 - 2.0 / (tl.exp2(scores * (2.0 / SOFTCAP)) + 1.0)
            bent = tl.where(square < 0.0625, series, large)
            scores = (SOFTCAP * 1.4426950408889634) * bent
        seen = inside[None, :] & (key[None, :] <= position[:, None]) & alive[:, None]
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        if TREE:
            distance = key - first_query
            bit = tl.minimum(tl.maximum(distance, 0), 63).to(tl.int64)
            seen = seen & ((distance < 0)[None, :] | ((branch[:, None] >> bit[None, :]) & 1 != 0))
        scores = tl.where(seen, scores, float("-inf"))
        newest = tl.maximum(best, tl.max(scores, 1))
        # A row that has seen no key yet: -inf minus -inf would be NaN.
        base = tl.where(newest == float("-inf"), 0.0, newest)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(best - base)
        total = total * shrink + tl.sum(weights, 1)
        v = load_tile(values, table, key, inside, head_offset, block_stride, block_size, head_dim,
                      column, DIM)  # fmt: skip
        out = out * shrink[:, None]
        out += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = newest
    return out, best, total


@triton.jit
def ragged_attention_kernel(
    q, keys, values, out, lse, tables, query_starts, kv_lens, tile_requests, tile_tokens, tree,
    q_row_stride, table_stride, block_stride, head_stride, block_size, num_heads, head_dim,
    scale, window,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DIM: tl.constexpr, WINDOW: tl.constexpr, TREE: tl.constexpr, SOFTCAP: tl.constexpr,
    LSE: tl.constexpr,
):  # fmt: skip
    """Program (t, h): tile t holds tokens `tile_tokens[t]` and on of request `tile_requests[t]`,
    for KV head h. Row m of the tile is token `m // GROUP` and query head `m % GROUP`."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    request = tl.load(tile_requests + tile)
    first_row = tl.load(query_starts + request)
    num_rows = tl.load(query_starts + request + 1) - first_row
    context = tl.load(kv_lens + request)
    m = tl.arange(0, ROWS)
    token = tl.load(tile_tokens + tile) + m // GROUP
    alive = (m // GROUP < TOKENS) & (token < num_rows)
    position = context - num_rows + token
    column = tl.arange(0, DIM)
    row = (first_row + token).to(tl.int64)
    head = kv_head * GROUP + m % GROUP
    mask = alive[:, None] & (column < head_dim)[None, :]
    address = q + row[:, None] * q_row_stride + head[:, None] * head_dim + column[None, :]
    queries = tl.load(address, mask, other=0.0)

    last = tl.max(tl.where(alive, position, 0), 0) + 1
    first = 0
    if WINDOW:
        oldest = tl.min(tl.where(alive, position, context), 0) - window + 1
        first = tl.maximum(oldest, 0) // KEYS * KEYS
    branch = position
    if TREE:
        # A request's only row is no tree: all bits are set, whatever its mask.
        branch = tl.load(tree + row, alive, other=0) | -(num_rows == 1).to(tl.int64)
    sums, best, total = attend(
        queries, keys, values, tables + request.to(tl.int64) * table_stride, position, alive,
        first, last, scale, window, branch, context - num_rows, kv_head * head_stride,
        block_stride, block_size, head_dim, column, ROWS, KEYS, DIM, WINDOW, TREE, SOFTCAP,
    )  # fmt: skip
    total = tl.where(alive, total, 1.0)
    result = sums / total[:, None]
    address = out + (row[:, None] * num_heads + head[:, None]) * head_dim + column[None, :]
    tl.store(address, result.to(out.dtype.element_ty), mask)
    if LSE:
        natural = (best + tl.log2(total)) * 0.6931471805599453
        tl.store(lse + row * num_heads + head, natural, alive)
