"""What a layer may need to know of the pass that it is part of, in one object.

It goes down through every block and every `Linear`, so that what later depends on the batch (the
adapter of each row, active rows, the experts that were used) needs no new argument anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minserve.attention.base import AttentionPlan
from minserve.batch import ForwardBatch


class ForwardContext:
    """One forward pass: its attention plan, its rows' positions and owners, and its counters."""

    __slots__ = ("_owners", "counters", "plan", "positions", "query_starts")

    def __init__(self, batch: ForwardBatch, plan: AttentionPlan) -> None:
        self.plan = plan
        self.positions = batch.positions
        """int64 `[num_tokens]`."""
        self.query_starts = batch.query_starts
        """int32 `[num_requests + 1]`: the first row of each request."""
        self.counters = Counters()
        self._owners: Tensor | None = None

    @property
    def owners(self) -> Tensor:
        """int64 `[num_tokens]`: the request of the batch to which each row belongs; padding belongs
        to requests after the real ones. Made when first asked for, on the batch's device, without
        waiting for it."""
        if self._owners is None:
            rows = torch.arange(self.positions.shape[0], device=self.positions.device)
            self._owners = torch.bucketize(rows, self.query_starts[1:], right=True)
        return self._owners


class Counters:
    """What blocks count while they run, because no shape tells it."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched: dict[tuple[int, str], Tensor] = {}
        """By layer and projection (`BlockSpec.projections`), how many of its copies were used:
        int64 `[]`, on the device."""
