"""`Linear`: one (possibly fused) projection, bound to the operators of one engine.

Projections that read the same input are one matrix with several parts (q|k|v, gate|up): one product
instead of three. Knows nothing about files and formats: if the operators have no product for a
matrix, the numbers that its format stands for are multiplied.
"""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.base import Ops
from minserve.kernels.matrix import Activation, Matrix, Product
from minserve.kernels.reference import DenseProduct
from minserve.layers.context import ForwardContext


class Linear:
    """A matrix and the product that one engine's operators make of it."""

    __slots__ = ("_ops", "product")

    def __init__(self, matrix: Matrix, ops: Ops) -> None:
        self._ops = ops
        self.product: Product = ops.product(matrix) or DenseProduct(matrix, ops)

    def apply(self, context: ForwardContext | None, x: Tensor) -> Tensor:
        """`[rows, inputs]` -> `[rows, outputs]`. The context is None outside of layers (head)."""
        return self.product.apply(x)

    def apply_gated(
        self, context: ForwardContext | None, x: Tensor, activation: Activation
    ) -> Tensor:
        """`activation(gate) * up` of `apply`: `[rows, inputs]` -> `[rows, outputs / 2]`."""
        return self.product.apply_gated(x, activation)

    def part(self, start: int, stop: int) -> Linear:
        """Outputs `start` to `stop` (exclusive) as a projection of their own, over the same memory
        if its packing allows, and otherwise with a copy."""
        matrix = self.product.matrix
        part = matrix.part(start, stop)
        if part is None:
            cut = matrix.canonical().part(start, stop)
            assert cut is not None, "a canonical matrix can be cut anywhere"
            part = cut.packed(matrix.packing)
        return Linear(part, self._ops)
