"""The operators in C++, for float32, float64 and bfloat16 on a CPU.

Calls that the compiled library does not support (float16, unusual strides, matrix products for
which torch is faster) go to `TorchOps`. `native_library` loads it, `native_check` tests it,
`native_rows` has the operators that work row by row, `native_products` the products with packed
weights, `native_attention` and `native_layers` what their names say. This file has the product with
dense weights that are not packed, and joins all into one set of operators.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from minserve.kernels.base import LayerStack, LayerTensors, PlannedAttention, SampleKernel
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.cpu.native_attention import (
    ONE_THREAD_PRODUCTS,
    NativePlannedAttention,
    lies_flat,
)
from minserve.kernels.cpu.native_check import check
from minserve.kernels.cpu.native_layers import NativeLayers
from minserve.kernels.cpu.native_library import NativeLibrary
from minserve.kernels.cpu.native_products import NativeProduct, multiplies
from minserve.kernels.cpu.native_rows import NativeRowOps
from minserve.kernels.cpu.spinning import SpareTeam, SpinGovernor
from minserve.kernels.matrix import Matrix, PackedShape, Product
from minserve.kernels.reference.product import DenseProduct

FEW_ROWS = 4
"""Up to this many rows, products with unpacked bfloat16 weights run here and not in torch."""


def native_ops() -> NativeOps:
    """The native operators of this process, compiled, loaded and checked on first use.

    Raises NativeUnavailable, with the reason, if that fails; it is not tried again.
    """
    found = _tried()
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found))
    return found


@functools.cache
def _tried() -> NativeOps | NativeUnavailable:
    try:
        ops = NativeOps()
        check(ops)
    except NativeUnavailable as error:
        return error
    return ops


class NativeOps(NativeRowOps):
    """`Ops` in C++. Raises NativeUnavailable if the file cannot be compiled or loaded.

    A row's result is bitwise the same whatever else is in the batch and however many threads run,
    and in float64 for every way of splitting a prompt into chunks, because every sum is taken in
    one order. Matrix products with unpacked weights are torch's, and guarantee neither.
    """

    name = "native"
    sample_kernel: SampleKernel | None = None

    def __init__(self) -> None:
        library = NativeLibrary()
        super().__init__(library)
        self._spinning = SpinGovernor(SpareTeam(library.open_team))
        self._attention = library.attention
        self._layers = library.layers
        self._few_rows_linear = library.few_rows_linear
        self._products = library.products
        self._packings = library.packings

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Ops.linear`, for weights that are not packed.

        Uses torch, except for few rows of bfloat16: for these torch takes two to three times as
        long as reading the weights, even with the processor's own instructions for bfloat16.
        """
        rows, inputs = x.shape
        if (
            x.dtype != torch.bfloat16
            or not 0 < rows <= FEW_ROWS
            or weight.dtype != torch.bfloat16
            or not weight.is_contiguous()
            or weight.shape[1] != inputs
            or x.stride(1) != 1
            or (bias is not None and not lies_flat(bias, torch.bfloat16, weight.shape[:1]))
        ):
            return self._torch.linear(x, weight, bias)
        outputs = weight.shape[0]
        out = x.new_empty(rows, outputs)
        self._few_rows_linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            x.stride(0),
            torch.get_num_threads() if rows * inputs * outputs > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def packing(self, kind: str, dtype: torch.dtype) -> PackedShape | None:
        """See `Ops.packing`."""
        return self._packings.get((kind, dtype))

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`. Canonical dense matrices are multiplied by `linear`."""
        if multiplies(matrix, self.packing(matrix.kind, matrix.dtype)):
            return NativeProduct(matrix, self._products[matrix.dtype], self)
        if matrix.kind == "dense" and matrix.packing is None:
            return DenseProduct(matrix, self)
        return None

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """See `Ops.plan_attention`. Called once per step."""
        if torch.get_num_threads() > 1:
            self._spinning.step()
        return NativePlannedAttention(
            self._attention, block_tables, query_starts, kv_lens, query_lens, context_lens, tree
        )

    def plan_decode(
        self, block_tables: Tensor, kv_lens: Tensor, longest: int
    ) -> PlannedAttention | None:
        """See `Ops.plan_decode`."""
        return None

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """See `Ops.layer_stack`."""
        stack = NativeLayers(self._layers, layers)
        return stack if any(stack.takes) else None
