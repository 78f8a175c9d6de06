"""Products on `Ops.linear`, for operators that read canonical dense weights as they lie."""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.base import Ops
from minserve.kernels.matrix import Activation, Matrix


class DenseProduct:
    """`Product` of a dense matrix with one engine's `Ops.linear`. A packed matrix is unpacked at
    every call, for comparisons only."""

    __slots__ = ("_gates", "_linear", "matrix")

    def __init__(self, matrix: Matrix, ops: Ops) -> None:
        self.matrix = matrix
        self._linear = ops.linear
        self._gates = {"silu": ops.silu_and_mul, "gelu_tanh": ops.gelu_and_mul}

    def apply(self, x: Tensor) -> Tensor:
        """See `Product.apply`."""
        matrix = self.matrix
        weights = matrix.codes if matrix.packing is None else matrix.dequantised()
        return self._linear(x, weights, matrix.bias)

    def apply_gated(self, x: Tensor, activation: Activation) -> Tensor:
        """See `Product.apply_gated`."""
        return self._gates[activation](self.apply(x))
