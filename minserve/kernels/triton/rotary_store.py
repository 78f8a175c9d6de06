"""Rotary embedding, per-head norms and the store into pages as one kernel.

As separate operators, they read and write each key three times and each query twice; together,
every number of the projection is read once and every result written once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def turn(
    address, inside, cos, sin, weight, column, half, head_dim, eps, NORM: tl.constexpr
):  # fmt: skip
    """Rotated first and second halves of the heads at `address`, float32 `[heads, half]` each; with
    NORM they are RMS-normalised first."""
    first = tl.load(address, inside, other=0.0).to(tl.float32)
    second = tl.load(address + half, inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        inverse = tl.rsqrt(squares / head_dim + eps)[:, None]
        there = column < half
        first = first * inverse * tl.load(weight + column, there, other=0.0).to(tl.float32)
        second = second * inverse * tl.load(weight + half + column, there, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def rotary_store_kernel(
    heads, positions, cos_sin, keys, values, slots, q_norm, k_norm,
    row_stride, block_stride, head_stride, block_size, num_heads, num_kv_heads, head_dim, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Program r handles row r: its angles and its slot are loaded once for all heads."""
    row = tl.program_id(0).to(tl.int64)
    half = head_dim // 2
    column = tl.arange(0, HALF)[None, :]
    table = cos_sin + tl.load(positions + row) * head_dim + column
    cos = tl.load(table, column < half, other=0.0).to(tl.float32)
    sin = tl.load(table + half, column < half, other=0.0).to(tl.float32)

    head = tl.arange(0, HEADS)[:, None]
    inside = (head < num_heads) & (column < half)
    address = heads + row * row_stride + head * head_dim + column
    first, second = turn(
        address, inside, cos, sin, q_norm, column, half, head_dim, eps, NORM
    )  # fmt: skip
    tl.store(address, first.to(heads.dtype.element_ty), inside)
    tl.store(address + half, second.to(heads.dtype.element_ty), inside)

    head = tl.arange(0, KV_HEADS)[:, None]
    inside = (head < num_kv_heads) & (column < half)
    address = heads + row * row_stride + (num_heads + head) * head_dim + column
    first, second = turn(
        address, inside, cos, sin, k_norm, column, half, head_dim, eps, NORM
    )  # fmt: skip
    slot = tl.load(slots + row)
    block, offset = slot // block_size, slot % block_size
    target = block * block_stride + head * head_stride + offset * head_dim + column
    tl.store(keys + target, first.to(keys.dtype.element_ty), inside)
    tl.store(keys + target + half, second.to(keys.dtype.element_ty), inside)
    address += num_kv_heads * head_dim
    tl.store(values + target, tl.load(address, inside), inside)
    tl.store(values + target + half, tl.load(address + half, inside), inside)


def rotary_store_(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """See `Ops.rotary_store_`."""
    rows, all_heads, head_dim = heads.shape
    num_kv_heads = keys.shape[1]
    num_heads = all_heads - 2 * num_kv_heads
    if rows:
        rotary_store_kernel[(rows,)](
            heads, positions, cos_sin, keys, values, slots, q_norm, k_norm,
            heads.stride(0), keys.stride(0), keys.stride(1), keys.shape[2],
            num_heads, num_kv_heads, head_dim, eps,
            HEADS=triton.next_power_of_2(num_heads), KV_HEADS=triton.next_power_of_2(num_kv_heads),
            HALF=triton.next_power_of_2(head_dim // 2), NORM=q_norm is not None, num_warps=4,
        )  # fmt: skip
