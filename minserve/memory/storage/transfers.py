"""Which transfers between device and host must wait for work that the device has queued.

Transfers run in their own stream, in parallel with the batch in flight. The cases in which they
touch the same pages:

- A save reads pages whose tokens are committed, so the batches that wrote them are done. Only a
  queued copy-on-write may not have filled its page yet.
- A load writes pages that were free. A batch in flight may still use them for a request that has
  ended meanwhile, a queued copy may still read them, and a pass that failed half-way may still
  write to them.

Batches are submitted and collected in order. When a batch is collected, it is done, and so is
everything queued before it. Work that is queued after a transfer always waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from minserve.batch import ForwardBatch


class TransferOrder:
    """Tracks what is queued on the device."""

    def __init__(self) -> None:
        self._in_flight: deque[tuple[dict[int, Tensor], bool]] = deque()
        """For each batch: the pages it may touch, by cache group, and whether anything else was
        queued before it."""
        self._loose = False

    def queued(self) -> None:
        """Record that something other than a batch was queued: a copy between pages, or
        a part of a pass."""
        self._loose = True

    def submitted(self, batch: ForwardBatch, numbers: Sequence[int]) -> None:
        """Record that a batch was queued, whose groups have these numbers in the engine."""
        tables = [group.block_tables for group in batch.groups]
        self._in_flight.append((dict(zip(numbers, tables, strict=True)), self._loose))
        self._loose = False

    def collected(self) -> None:
        """Record that the oldest batch is done. If the submission of a batch was interrupted,
        it may never have been recorded; then this does nothing, and `queued` has made
        transfers wait for it."""
        if self._in_flight:
            self._in_flight.popleft()

    def save_waits(self) -> bool:
        """Must a save wait for everything queued so far?"""
        return self._loose or any(loose for _, loose in self._in_flight)

    def load_waits(self, blocks: Sequence[int], group: int) -> bool:
        """Must a load into these pages of a group wait for everything queued so far?"""
        if self.save_waits():
            return True
        wanted = torch.tensor(blocks, dtype=torch.int32)
        return any(
            bool(torch.isin(wanted, tables[group]).any())
            for tables, _ in self._in_flight
            if group in tables
        )
