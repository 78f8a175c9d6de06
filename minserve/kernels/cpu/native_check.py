"""Compares the compiled operators with torch's, once per process, before they are used.

If a compiler or a processor gets them wrong, the engine becomes slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minserve.kernels.base import Ops, Scores
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.cpu.native_library import DTYPES
from minserve.kernels.matrix import Matrix, Product
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.reference.product import DenseProduct
from minserve.kernels.tree import PLAIN

BATCH, CONTEXTS = (1, 1, 19), (70, 3, 41)
"""Query rows and context of three requests: two decode, one computes its prompt."""
TREE = (PLAIN, PLAIN, *(1 | 1 << node for node in range(BATCH[2])))
"""The same rows, of which the last request's are a star: each sees the first and itself."""


@dataclass(frozen=True)
class Codes:
    """`MatrixFormat` of the matrices that are multiplied here: codes times their scales."""

    kind: str

    def dequantise(self, matrix: Matrix) -> Tensor:
        """See `MatrixFormat.dequantise`."""
        if matrix.scales is None:
            return matrix.codes
        codes = matrix.codes.to(accumulation_dtype(matrix.dtype))
        return (codes * matrix.scales[:, None]).to(matrix.dtype)

    def rows(self, matrix: Matrix, codes: Tensor, indices: Tensor) -> Tensor:
        """See `MatrixFormat.rows`."""
        raise NotImplementedError("no rows are looked up")


def check(native: Ops) -> None:
    """Compare on a small ragged batch. Raises NativeUnavailable if the operators disagree."""
    for dtype in DTYPES:
        mine, torchs = (_results(ops, dtype) for ops in (native, TorchOps()))
        error = (mine - torchs).abs().max().item()
        if not error < {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 0.2):
            raise NativeUnavailable(
                f"the compiled operators differ from torch's by {error:.1e} in {dtype}: the "
                "compiler or the processor is at fault; please report both"
            )


def _results(ops: Ops, dtype: torch.dtype) -> Tensor:
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
    planned = ops.plan_attention(*batch)
    branches = ops.plan_attention(*batch, torch.tensor(TREE))
    total = x.flip(0)
    parts = (
        ops.add_rms_norm(x, total, weight, 1e-6),
        total,
        *_stored(ops, heads, angles, weight[:32]),
        ops.rms_norm(x, weight, 1e-6),
        ops.silu_and_mul(x),
        ops.gelu_and_mul(x),
        planned(heads[:, :4], keys, values, Scores(0.2, 30))[0],
        planned(heads[:, :4], keys, values, Scores(0.2, softcap=3.0))[0],
        branches(heads[:, :4], keys, values, Scores(0.2))[0],
        *(product / product.abs().max() for product in _products(ops, x, random)),
        ops.linear(x[:3], random(70, x.shape[1]).to(dtype) / x.shape[1] ** 0.5),
    )
    return torch.cat([part.flatten().double() for part in parts])


def _stored(ops: Ops, heads: Tensor, angles: Tensor, norm: Tensor) -> list[Tensor]:
    """Queries and pages after keys and values were stored, rotated and not."""
    rows, _, head_dim = heads.shape
    slots = torch.arange(rows).flip(0) * 3
    turned, pages = heads[:, :8].clone(), heads.new_zeros(4, 4, 2, 16, head_dim)
    ops.rotary_store_(
        turned, torch.arange(rows), angles, pages[0], pages[1], slots, norm, norm.flip(0), 1e-6
    )
    ops.store_kv(heads[:, 4:6], heads[:, 6:8], pages[2], pages[3], slots)
    return [turned[:, :4], pages]


def _products(ops: Ops, x: Tensor, random: Callable[..., Tensor]) -> list[Tensor]:
    """Products of `x` with matrices of each kind, one biased and two gated."""
    found, dtype, inputs = [], x.dtype, x.shape[1]
    for kind in ("dense", "int8"):
        biased = replace(_matrix(kind, random(70, inputs), dtype), bias=random(70).to(dtype))
        found.append(_product(ops, biased).apply(x))
        gated = _product(ops, _matrix(kind, random(128, inputs), dtype))
        found += [gated.apply_gated(x, "silu"), gated.apply_gated(x, "gelu_tanh")]
    return found


def _product(ops: Ops, matrix: Matrix) -> Product:
    """With torch, and with kinds that these operators do not have: of the numbers themselves."""
    product = ops.product(matrix.packed(ops.packing(matrix.kind, matrix.dtype)))
    if product is None:
        numbers = replace(matrix, format=Codes("dense"), codes=matrix.dequantised(), scales=None)
        product = DenseProduct(numbers, ops)
    return product


def _matrix(kind: str, numbers: Tensor, dtype: torch.dtype) -> Matrix:
    """`numbers` `[outputs, inputs]` in one kind, with rows of about length 1."""
    outputs, inputs = numbers.shape
    numbers = numbers / inputs**0.5
    codes, scales = numbers.to(dtype), None
    if kind == "int8":
        scales = numbers.abs().amax(1) / 127
        codes = (numbers / scales[:, None]).round().to(torch.int8)
    return Matrix(Codes(kind), outputs, inputs, dtype, codes, scales)


def _numbers() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return random
