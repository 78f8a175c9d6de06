"""Compares the compiled operators with torch's, once per process, before they are used.

If a compiler or a processor gets them wrong, the engine becomes slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minserve.kernels.base import Ops, PackedShape
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.cpu.native_library import DTYPES
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.matrix import pack
from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.tree import PLAIN

BATCH, CONTEXTS = (1, 1, 19), (70, 3, 41)
"""Query rows and context of three requests: two decode, one computes its prompt."""
TREE = (PLAIN, PLAIN, *(1 | 1 << node for node in range(BATCH[2])))
"""The same rows, of which the last request's are a star: each sees the first and itself."""


def check(native: Ops) -> None:
    """Compare on a small ragged batch. Raises NativeUnavailable if the operators disagree."""
    for dtype in DTYPES:
        # Both sides use the packing of `native`; torch's operators accept any.
        packing = native.packed_shape(dtype) or PackedShape(8)
        mine, torchs = (_results(ops, dtype, packing) for ops in (native, TorchOps()))
        error = (mine - torchs).abs().max().item()
        if not error < {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 0.2):
            raise NativeUnavailable(
                f"the compiled operators differ from torch's by {error:.1e} in {dtype}: the "
                "compiler or the processor is at fault; please report both"
            )


def _results(ops: Ops, dtype: torch.dtype, packing: PackedShape) -> Tensor:
    """The results of these operators on the batch, as one row of float64; the same at every
    call."""
    random = _numbers()
    tables = torch.arange(15, dtype=torch.int32).view(3, 5)
    starts = torch.tensor([0, 1, 2, 21], dtype=torch.int32)
    kv_lens = torch.tensor(CONTEXTS, dtype=torch.int32)
    angles = random(21, 32).to(accumulation_dtype(dtype))
    x, weight = random(21, 20 * 32).to(dtype), random(20 * 32).to(dtype)
    keys, values = random(15, 2, 16, 32).to(dtype), random(15, 2, 16, 32).to(dtype)
    heads = x.view(21, 20, 32)
    ops.rotary_(heads[:, :10], torch.arange(21), angles)
    batch = (tables, starts, kv_lens, BATCH, CONTEXTS)
    attended, _ = ops.plan_attention(*batch)(heads[:, :4], keys, values, 0.2, 30)
    branches = ops.plan_attention(*batch, torch.tensor(TREE))
    attended_tree, _ = branches(heads[:, :4], keys, values, 0.2, None)
    product = ops.packed_linear(x, pack(x, packing), len(x), x[0, : len(x)])
    parts = (
        ops.rms_norm(x, weight, 1e-6),
        ops.silu_and_mul(x),
        attended,
        attended_tree,
        product / product.abs().max(),
    )
    return torch.cat([part.flatten().double() for part in parts])


def _numbers() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return random
