"""Decode attention with the context split over programs, and the merge of the parts.

Flash-decoding (Dao et al., 2023): each part of a context writes its normalised output and its
log-sum-exp, and a second kernel merges them exactly. `occupancy.num_splits` chooses the
number of parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minserve.kernels.triton.attention import attend

PARTS = 8
"""Parts that the merge processes at a time."""


@triton.jit
def split_attention_kernel(
    q, keys, values, parts, part_lse, tables, kv_lens,
    q_row_stride, table_stride, block_stride, head_stride, block_size, num_heads, head_dim,
    scale, window, num_splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Program (r, h, s): part s of the context of request r, for KV head h. `parts` is
    `[requests, heads, splits, head_dim]` in float32, `part_lse` the same without the last; a part
    without keys has lse -inf."""
    request, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(kv_lens + request)
    oldest = 0
    if WINDOW:
        oldest = tl.maximum(context - window, 0)
    share = tl.cdiv(tl.cdiv(context - oldest, num_splits), KEYS) * KEYS
    first = oldest + split * share
    last = tl.minimum(first + share, context)
    m = tl.arange(0, ROWS)
    alive = m < GROUP
    column = tl.arange(0, DIM)
    head = kv_head * GROUP + m
    mask = alive[:, None] & (column < head_dim)[None, :]
    address = q + request.to(tl.int64) * q_row_stride + head[:, None] * head_dim + column[None, :]
    queries = tl.load(address, mask, other=0.0)
    position = tl.zeros([ROWS], tl.int32) + context - 1
    sums, best, total = attend(
        queries, keys, values, tables + request.to(tl.int64) * table_stride, position, alive,
        first, last, scale, window, position, context, kv_head * head_stride, block_stride,
        block_size, head_dim, column, ROWS, KEYS, DIM, WINDOW, False, SOFTCAP,
    )  # fmt: skip
    part = (request.to(tl.int64) * num_heads + head) * num_splits + split
    empty = total == 0.0
    result = sums / tl.where(empty, 1.0, total)[:, None]
    tl.store(parts + part[:, None] * head_dim + column[None, :], result, mask)
    natural = (best + tl.log2(tl.where(empty, 1.0, total))) * 0.6931471805599453
    tl.store(part_lse + part, tl.where(empty, float("-inf"), natural), alive)


@triton.jit
def merge_kernel(
    parts, part_lse, out, lse, num_splits, head_dim,
    PARTS: tl.constexpr, DIM: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Program p merges the parts of one request and head, any number of them, each read once."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM)
    best = tl.max(tl.full([PARTS], float("-inf"), tl.float32), 0)
    total = tl.sum(tl.zeros([PARTS], tl.float32), 0)
    joined = tl.zeros([DIM], tl.float32)
    for start in range(0, num_splits, PARTS):
        split = start + tl.arange(0, PARTS)
        there = split < num_splits
        sums = tl.load(part_lse + program * num_splits + split, there, other=float("-inf"))
        newest = tl.maximum(best, tl.max(sums, 0))
        # A row of padding has no keys at all: -inf minus -inf would be NaN.
        base = tl.where(newest == float("-inf"), 0.0, newest)
        weights = tl.exp(sums - base)
        shrink = tl.exp(best - base)
        mask = there[:, None] & (column < head_dim)[None, :]
        rows = (program * num_splits + split)[:, None] * head_dim + column[None, :]
        values = tl.load(parts + rows, mask, other=0.0)
        joined = joined * shrink + tl.sum(values * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        best = newest
    total = tl.where(total == 0.0, 1.0, total)
    result = joined / total
    tl.store(out + program * head_dim + column, result.to(out.dtype.element_ty), column < head_dim)
    if LSE:
        tl.store(lse + program, best + tl.log(total))
