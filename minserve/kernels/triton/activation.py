"""SiLU and multiply: combines the two halves of a gated feed-forward in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Columns of one program."""


@triton.jit
def silu_and_mul_kernel(gate_up, out, row_stride, inner, BLOCK: tl.constexpr):
    """Program (r, c) computes columns `c * BLOCK` and on of row r."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    here = gate_up + row * row_stride + column
    gate = tl.load(here, inside, other=0.0).to(tl.float32)
    up = tl.load(here + inner, inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * inner + column, product.to(out.dtype.element_ty), inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `Ops.silu_and_mul`."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, inner), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        grid = (rows, triton.cdiv(inner, BLOCK))
        silu_and_mul_kernel[grid](gate_up, out, gate_up.stride(0), inner, BLOCK=BLOCK, num_warps=4)
    return out
