"""Token embedding: a row of the table per token. A tied output projection shares the table."""

from __future__ import annotations

import torch
from torch import Tensor


class Embedding:
    """The table `[vocab_size, hidden_size]`."""

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.weight.nbytes

    def apply(self, token_ids: Tensor) -> Tensor:
        """int64 `[rows]` -> `[rows, hidden_size]`, always a new tensor: the residual stream of a
        forward pass starts here and is updated in place."""
        return torch.index_select(self.weight, 0, token_ids)
