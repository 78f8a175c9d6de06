"""What the manager needs of the storage of pages: copy, save, load.

Calls come in the order in which they must take effect, before the batch that relies on them is
submitted. A store on a GPU queues them on streams of its own and returns at once. It is told of
every batch, so that it knows which copies may run in parallel with it (`transfers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minserve.batch import ForwardBatch


class BlockStore(Protocol):
    """Storage of pages on the device and of page slots in host memory."""

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy device pages onto others: copy-on-write."""

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy device pages into host slots."""

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host slots into device pages."""

    def read_slot(self, slot: int) -> memoryview:
        """The bytes of a host slot, once what was queued for it is done."""

    def write_slot(self, slot: int, data: bytes) -> None:
        """Fill a host slot."""

    def submitted(self, batch: ForwardBatch) -> None:
        """A batch over these pages was started."""

    def failed(self) -> None:
        """A batch could not be started; a part of it may still run."""

    def collected(self) -> None:
        """The oldest batch started has ended."""


class NoStore:
    """Pages without content: for runs in which only their number matters."""

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Nothing."""

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Nothing."""

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Nothing."""

    def read_slot(self, slot: int) -> memoryview:
        """No bytes."""
        return memoryview(b"")

    def write_slot(self, slot: int, data: bytes) -> None:
        """Nothing."""

    def submitted(self, batch: ForwardBatch) -> None:
        """Nothing."""

    def failed(self) -> None:
        """Nothing."""

    def collected(self) -> None:
        """Nothing."""
