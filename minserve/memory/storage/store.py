"""The interface that the manager needs to store pages: copy, save, load.

Calls are made in the order in which they must take effect, before the batch that relies on them is
submitted. A store on a GPU queues them on its own streams and returns at once. Every batch is
reported to it, so that it knows which copies may run in parallel with the batch (`transfers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from minserve.batch import ForwardBatch


class BlockStore(Protocol):
    """Storage of one cache group's pages on the device and of its page slots in host memory."""

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy device pages onto others: copy-on-write."""

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy single tokens within the device's pages: from token slots to token slots, where
        slot = block * block_size + offset. All are read before any is written."""

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy device pages into host slots."""

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host slots into device pages."""

    def read(self, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """Device pages on the CPU, after all queued work: `[num_pages, layers, tensors, num_heads,
        block_size, head_dim]` for each shape of tensors."""

    def read_host(self, slots: Sequence[int]) -> tuple[Tensor, ...]:
        """The same of host slots, after the copies queued for them."""

    def write(self, blocks: Sequence[int], pages: Sequence[Tensor]) -> None:
        """Fill device pages with what `read` returned; ordered as a load is."""

    def token_shapes(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of so many tokens outside their pages (`ExportedGroup.tensors`)."""

    def read_slot(self, slot: int) -> memoryview:
        """The bytes of a host slot, after the copies queued for it are done."""

    def write_slot(self, slot: int, data: bytes) -> None:
        """Fill a host slot."""


class PageStore(Protocol):
    """The stores of all cache groups of an engine, and what they must know of its batches."""

    def group(self, number: int) -> BlockStore:
        """The store of a cache group, in the order of the groups' plans."""

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        """Report that a batch of a model (`CacheGroup.model`) over these pages was started."""

    def failed(self) -> None:
        """Report that a batch could not be started; a part of it may still run."""

    def collected(self) -> None:
        """Report that the oldest started batch has ended."""


class NoStore:
    """Pages without content: for runs in which only their number matters."""

    def group(self, number: int) -> BlockStore:
        """The same for every group."""
        return self

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Does nothing."""

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Does nothing."""

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Does nothing."""

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Does nothing."""

    def read(self, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def read_host(self, slots: Sequence[int]) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def write(self, blocks: Sequence[int], pages: Sequence[Tensor]) -> None:
        """Does nothing."""

    def token_shapes(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()

    def read_slot(self, slot: int) -> memoryview:
        """No bytes."""
        return memoryview(b"")

    def write_slot(self, slot: int, data: bytes) -> None:
        """Does nothing."""

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        """Does nothing."""

    def failed(self) -> None:
        """Does nothing."""

    def collected(self) -> None:
        """Does nothing."""
