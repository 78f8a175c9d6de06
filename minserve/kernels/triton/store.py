"""Writes keys and values of new tokens into their pages: a scatter, one program per token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_kv_kernel(
    k,
    v,
    keys,
    values,
    slots,
    k_row_stride,
    v_row_stride,
    block_stride,
    head_stride,
    block_size,
    num_heads,
    head_dim,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Program r writes row r; inside a page a head's tokens are adjacent."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, DIM)[None, :]
    inside = (head < num_heads) & (column < head_dim)
    source = head * head_dim + column
    block, offset = slot // block_size, slot % block_size
    target = block * block_stride + head * head_stride + offset * head_dim + column
    tl.store(keys + target, tl.load(k + row * k_row_stride + source, inside), inside)
    tl.store(values + target, tl.load(v + row * v_row_stride + source, inside), inside)


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """See `Ops.store_kv`."""
    rows, num_heads, head_dim = k.shape
    if rows:
        store_kv_kernel[(rows,)](
            k, v, keys, values, slots, k.stride(0), v.stride(0), keys.stride(0), keys.stride(1),
            keys.shape[2], num_heads, head_dim,
            HEADS=triton.next_power_of_2(num_heads), DIM=triton.next_power_of_2(head_dim),
            num_warps=4,
        )  # fmt: skip
