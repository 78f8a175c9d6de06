"""Decode attention with the context split over programs, and the merge of the parts.

One query per request leaves a GPU idle: a batch of 4 requests with 8 KV heads is 32 programs for
132 multiprocessors. Flash-decoding (Dao et al., 2023) cuts the context too; each part leaves its
normalised output and its log-sum-exp, and a second kernel joins them exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minserve.kernels.triton.attention import attend

LEAST_KEYS = 128
"""Keys a part is worth a program for."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs that hide each other's waits for memory."""


def num_splits(num_programs: int, longest: int, num_processors: int) -> int:
    """Parts of each context, so that the programs of one layer fill the device: `num_programs`
    is requests times KV heads, `longest` the longest context in tokens."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * num_processors // num_programs)
    return max(1, min(wanted, -(-longest // LEAST_KEYS)))


@triton.jit
def split_attention_kernel(
    q, keys, values, parts, part_lse, tables, kv_lens,
    q_row_stride, table_stride, block_stride, head_stride, block_size, num_heads, head_dim,
    scale, window, num_splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr,
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
    place = q + request.to(tl.int64) * q_row_stride + head[:, None] * head_dim + column[None, :]
    queries = tl.load(place, mask, other=0.0)
    position = tl.zeros([ROWS], tl.int32) + context - 1
    sums, best, total = attend(
        queries, keys, values, tables + request.to(tl.int64) * table_stride, position, alive,
        first, last, scale, window, position, context, kv_head * head_stride, block_stride,
        block_size, head_dim, column, ROWS, KEYS, DIM, WINDOW, False,
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
    SPLITS: tl.constexpr, DIM: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Program p joins the parts of one request and head."""
    program = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, DIM)
    there = split < num_splits
    sums = tl.load(part_lse + program * num_splits + split, there, other=float("-inf"))
    best = tl.max(sums, 0)
    weights = tl.exp(sums - best)
    total = tl.sum(weights, 0)
    mask = there[:, None] & (column < head_dim)[None, :]
    rows = (program * num_splits + split)[:, None] * head_dim + column[None, :]
    values = tl.load(parts + rows, mask, other=0.0)
    result = tl.sum(values * (weights / total)[:, None], 0)
    tl.store(out + program * head_dim + column, result.to(out.dtype.element_ty), column < head_dim)
    if LSE:
        tl.store(lse + program, best + tl.log(total))
