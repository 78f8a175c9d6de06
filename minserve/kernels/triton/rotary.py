"""Rotary position embedding in place (Su et al., arXiv 2104.09864); the halves of a
head form pairs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotary_kernel(
    x,
    positions,
    cos_sin,
    x_row_stride,
    num_heads,
    head_dim,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Program r rotates every head of row r; its angles are loaded once for all of them."""
    row = tl.program_id(0).to(tl.int64)
    half = head_dim // 2
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)
    inside = (head < num_heads) & (column < half)[None, :]
    table = cos_sin + tl.load(positions + row) * head_dim + column
    cos = tl.load(table, column < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(table + half, column < half, other=0.0).to(tl.float32)[None, :]
    first = x + row * x_row_stride + head * head_dim + column[None, :]
    a = tl.load(first, inside, other=0.0).to(tl.float32)
    b = tl.load(first + half, inside, other=0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(x.dtype.element_ty), inside)
    tl.store(first + half, (b * cos + a * sin).to(x.dtype.element_ty), inside)


def rotary_(x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    """See `Ops.rotary_`."""
    rows, num_heads, head_dim = x.shape
    if rows:
        rotary_kernel[(rows,)](
            x, positions, cos_sin, x.stride(0), num_heads, head_dim,
            HEADS=triton.next_power_of_2(num_heads), HALF=triton.next_power_of_2(head_dim // 2),
            num_warps=4,
        )  # fmt: skip
