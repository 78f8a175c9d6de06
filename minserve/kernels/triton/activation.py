"""Activation and multiply: combines the two halves of a gated feed-forward in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minserve.kernels.matrix import Activation

BLOCK = 1024
"""Columns of one program."""


@triton.jit
def gate_kernel(gate_up, out, row_stride, inner, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    """Program (r, c) computes columns `c * BLOCK` and on of row r. ACTIVATION is an `Activation`:
    each is `gate / (1 + exp(-exponent))`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    here = gate_up + row * row_stride + column
    gate = tl.load(here, inside, other=0.0).to(tl.float32)
    up = tl.load(here + inner, inside, other=0.0).to(tl.float32)
    exponent = gate
    if ACTIVATION == "gelu_tanh":
        # (1 + tanh(x)) / 2 = 1 / (1 + exp(-2 x)); the factor is 2 sqrt(2 / pi).
        exponent = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    product = gate / (1.0 + tl.exp(-exponent)) * up
    tl.store(out + row * inner + column, product.to(out.dtype.element_ty), inside)


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `Ops.silu_and_mul` and `Ops.gelu_and_mul`."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, inner), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        grid = (rows, triton.cdiv(inner, BLOCK))
        gate_kernel[grid](
            gate_up, out, gate_up.stride(0), inner, BLOCK=BLOCK, ACTIVATION=activation, num_warps=4
        )
    return out
