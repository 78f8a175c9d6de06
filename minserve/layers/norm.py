"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467): a weight and an epsilon.

The operators accumulate in at least float32; the weight is kept in the model's dtype.
"""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.base import Ops


class RMSNorm:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension."""

    __slots__ = ("eps", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def apply(self, ops: Ops, x: Tensor) -> Tensor:
        """`[rows, hidden]` or `[rows, heads, head_dim]` -> same shape, new tensor."""
        return ops.rms_norm(x, self.weight, self.eps)

    def apply_rows(self, ops: Ops, x: Tensor, rows: Tensor) -> Tensor:
        """Rows `rows`, int64 `[n]`, of `[num_rows, hidden]` -> `[n, hidden]`, new tensor."""
        return ops.rms_norm_rows(x, rows, self.weight, self.eps)

    def add_apply(self, ops: Ops, x: Tensor, residual: Tensor) -> Tensor:
        """Add `x` into the residual stream in place, and return the normalised stream."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)
