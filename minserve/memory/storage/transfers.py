"""Which transfers between device and host must stand behind what the device has still to do.

Transfers run on a stream of their own, beside the batch in flight. What may meet there:

- A save reads pages whose tokens are committed, so the batches that wrote them are done. Only what
  a copy on write has queued for a page may not be there yet.
- A load writes pages that nobody owns. A batch in flight may still use them, for a request that
  ended meanwhile; a queued copy may still read them; and a pass that failed half-way may still
  write to them.

Batches are submitted and collected in order; one that is collected is done, and so is everything
queued before it. What comes after a transfer waits for it in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from minserve.batch import ForwardBatch


class TransferOrder:
    """Follows what is queued on the device."""

    def __init__(self) -> None:
        self._in_flight: deque[tuple[Tensor, bool]] = deque()
        """Pages that a batch may touch, and whether anything else was queued before it."""
        self._loose = False

    def queued(self) -> None:
        """Something that is no batch was queued: a copy between pages, or a part of a pass."""
        self._loose = True

    def submitted(self, batch: ForwardBatch) -> None:
        """A batch was queued. All its groups share one numbering of pages."""
        tables = batch.groups[0].block_tables if batch.groups else torch.empty(0, dtype=torch.int32)
        self._in_flight.append((tables, self._loose))
        self._loose = False

    def collected(self) -> None:
        """The oldest batch is done. One that was never reported, because it was interrupted as it
        was submitted, is left alone: `queued` has made transfers wait for it."""
        if self._in_flight:
            self._in_flight.popleft()

    def save_waits(self) -> bool:
        """Must a save stand behind everything queued so far?"""
        return self._loose or any(loose for _, loose in self._in_flight)

    def load_waits(self, blocks: Sequence[int]) -> bool:
        """Must a load into these pages stand behind everything queued so far?"""
        if self.save_waits():
            return True
        wanted = torch.tensor(blocks, dtype=torch.int32)
        return any(bool(torch.isin(wanted, tables).any()) for tables, _ in self._in_flight)
