"""Token embedding: a row of the table per token. A tied output projection shares the table."""

from __future__ import annotations

from torch import Tensor

from minserve.layers.linear import TableWeight


class Embedding:
    """The table `[vocab_size, hidden_size]`."""

    __slots__ = ("table",)

    def __init__(self, table: TableWeight) -> None:
        self.table = table

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.table.nbytes

    def apply(self, token_ids: Tensor) -> Tensor:
        """int64 `[rows]` -> `[rows, hidden_size]`. Always a new tensor, because the forward pass
        updates it in place as its residual stream."""
        return self.table.rows(token_ids)
