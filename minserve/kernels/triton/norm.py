"""RMSNorm, alone and fused with the residual addition before it (Zhang and Sennrich, 1910.07467).

One program normalises one row and keeps it in registers: each number is read once and written once,
while separate operators move the residual stream five times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(
    x,
    rows,
    weight,
    out,
    x_row_stride,
    x_head_stride,
    num_heads,
    width,
    eps,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Program p normalises head `p % num_heads` of row `p // num_heads`; with GATHER, of the row
    whose index is stored there in `rows`. `out` is contiguous."""
    program = tl.program_id(0).to(tl.int64)
    row, head = program // num_heads, program % num_heads
    if GATHER:
        row = tl.load(rows + row)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * x_row_stride + head * x_head_stride + column, inside, other=0.0)
    wide = values.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = wide * inverse * tl.load(weight + column, inside, other=0.0).to(tl.float32)
    tl.store(out + program * width + column, scaled.to(out.dtype.element_ty), inside)


@triton.jit
def add_rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    x_row_stride,
    residual_row_stride,
    width,
    eps,
    BLOCK: tl.constexpr,
):
    """Program p adds row p of `x` to `residual`, in place, and normalises the sum as stored."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    stream = residual + row * residual_row_stride + column
    total = tl.load(stream, inside, other=0.0).to(tl.float32)
    total += tl.load(x + row * x_row_stride + column, inside, other=0.0).to(tl.float32)
    rounded = total.to(residual.dtype.element_ty)
    tl.store(stream, rounded, inside)
    wide = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = wide * inverse * tl.load(weight + column, inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, scaled.to(out.dtype.element_ty), inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Ops.rms_norm`."""
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_heads, head_stride = (x.shape[1], x.stride(1)) if x.ndim == 3 else (1, 0)
    if out.numel():
        rms_norm_kernel[(x.shape[0] * num_heads,)](
            x, None, weight, out, x.stride(0), head_stride, num_heads, width, eps,
            BLOCK=triton.next_power_of_2(width), GATHER=False, num_warps=warps_for(width),
        )  # fmt: skip
    return out


def rms_norm_rows(x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Ops.rms_norm_rows`."""
    width = x.shape[1]
    out = torch.empty((rows.shape[0], width), dtype=x.dtype, device=x.device)
    if out.numel():
        rms_norm_kernel[(rows.shape[0],)](
            x, rows, weight, out, x.stride(0), 0, 1, width, eps,
            BLOCK=triton.next_power_of_2(width), GATHER=True, num_warps=warps_for(width),
        )  # fmt: skip
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Ops.add_rms_norm`."""
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        add_rms_norm_kernel[(rows,)](
            x, residual, weight, out, x.stride(0), residual.stride(0), width, eps,
            BLOCK=triton.next_power_of_2(width), num_warps=warps_for(width),
        )  # fmt: skip
    return out


def warps_for(width: int) -> int:
    """Warps of a program that holds one row: about 16 numbers per thread."""
    return max(1, min(16, int(triton.next_power_of_2(width)) // 512))
