"""Products on `Ops.linear`: for dense weights as they lie, and for any format that operators have
no product for."""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.base import Ops
from minserve.kernels.matrix import Activation, Matrix


class DenseProduct:
    """`Product` with one engine's `Ops.linear`. A canonical dense matrix is multiplied as it is; of
    any other the numbers are computed at every call, which is slow and right everywhere."""

    __slots__ = ("_bias", "_gates", "_linear", "_weights", "matrix")

    def __init__(self, matrix: Matrix, ops: Ops) -> None:
        self.matrix = matrix
        self._weights = matrix.codes if matrix.kind == "dense" and not matrix.packing else None
        self._bias = matrix.bias
        self._linear = ops.linear
        self._gates = {"silu": ops.silu_and_mul, "gelu_tanh": ops.gelu_and_mul}

    def apply(self, x: Tensor) -> Tensor:
        """See `Product.apply`."""
        weights = self._weights
        if weights is None:
            weights = self.matrix.dequantised()
        return self._linear(x, weights, self._bias)

    def apply_gated(self, x: Tensor, activation: Activation) -> Tensor:
        """See `Product.apply_gated`."""
        return self._gates[activation](self.apply(x))
