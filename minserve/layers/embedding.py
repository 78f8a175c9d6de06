"""Token embedding: a row of the table per token. A tied output projection shares the table."""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.matrix import Matrix


class Embedding:
    """The table `[vocab_size, hidden_size]`, and the factor on what is looked up."""

    __slots__ = ("multiplier", "table")

    def __init__(self, table: Matrix, multiplier: float = 1.0) -> None:
        self.table = table
        self.multiplier = multiplier

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.table.nbytes

    def apply(self, token_ids: Tensor) -> Tensor:
        """int64 `[rows]` -> `[rows, hidden_size]`. Always a new tensor, because the forward pass
        updates it in place as its residual stream."""
        found = self.table.rows(token_ids)
        return found if self.multiplier == 1.0 else found.mul_(self.multiplier)
