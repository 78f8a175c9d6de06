"""Pages on their way between a modelled device and its host: tickets with completion times.

A link carries one transfer after the other in each direction. Saving is started and forgotten; a
load waits for its own ticket, and before that for the ticket of the save that filled its slot: the
page may still be on its way out. Knows bytes and times, no content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock


@dataclass(frozen=True)
class HostLink:
    """What lies between a device and its host."""

    bytes_per_s: float = 50e9
    """Each way. An assumption: PCIe 5.0 with 16 lanes is 63 GB/s by its specification, and copies
    of pages do not reach all of it."""
    latency_s: float = 10e-6
    """Of every transfer, however small."""
    disk_bytes_per_s: float = 5e9
    """Between the host and its disk, each way. An assumption: one NVMe drive of a server."""

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0 or self.latency_s < 0 or self.disk_bytes_per_s <= 0:
            raise ValueError(
                f"HostLink(bytes_per_s={self.bytes_per_s}, latency_s={self.latency_s}, "
                f"disk_bytes_per_s={self.disk_bytes_per_s}): expected positive bandwidths and a "
                "latency of at least 0 seconds"
            )


@dataclass(frozen=True)
class Ticket:
    """A transfer that was started."""

    num_bytes: int
    done_s: float
    """By the virtual clock."""


class Direction:
    """One way of a link: transfers queue behind one another."""

    def __init__(self, link: HostLink, clock: VirtualClock) -> None:
        self._link, self._clock = link, clock
        self._free_s = 0.0

    def start(self, num_bytes: int, not_before_s: float = 0.0) -> Ticket:
        """Queue a transfer that can begin at `not_before_s` at the earliest."""
        begin_s = max(self._clock.now(), self._free_s, not_before_s)
        self._free_s = begin_s + self._link.latency_s + num_bytes / self._link.bytes_per_s
        return Ticket(num_bytes, self._free_s)


class VirtualStore:
    """A `BlockStore` of pages without content whose transfers take modelled time."""

    def __init__(
        self,
        block_bytes: int,
        clock: VirtualClock,
        link: HostLink,
        device_bytes_per_s: float | None = None,
    ) -> None:
        """`device_bytes_per_s` is the device's memory bandwidth; None: copies on it are free."""
        self._block_bytes, self._clock = block_bytes, clock
        self._device_bytes_per_s = device_bytes_per_s
        self._disk_s = block_bytes / link.disk_bytes_per_s
        self._out, self._in = Direction(link, clock), Direction(link, clock)
        self._filled: dict[int, Ticket] = {}

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Read and write the pages once, on the device."""
        if self._device_bytes_per_s:
            moved = 2 * len(targets) * self._block_bytes
            self._clock.advance(moved / self._device_bytes_per_s)

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Start a transfer out; reading its slots waits for it, nothing else does."""
        if slots:
            ticket = self._out.start(len(slots) * self._block_bytes)
            self._filled.update(dict.fromkeys(slots, ticket))

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Transfer in, and wait: the batch that comes next reads these pages."""
        if slots:
            saved_s = max((self._filled[s].done_s for s in slots if s in self._filled), default=0.0)
            ticket = self._in.start(len(slots) * self._block_bytes, saved_s)
            self._clock.wait_until(ticket.done_s)

    def read_slot(self, slot: int) -> memoryview:
        """No bytes, once they are there and written to the disk."""
        if slot in self._filled:
            self._clock.wait_until(self._filled[slot].done_s)
        self._clock.advance(self._disk_s)
        return memoryview(b"")

    def write_slot(self, slot: int, data: bytes) -> None:
        """The slot is filled from the disk: no transfer of the device has to be waited for."""
        self._filled.pop(slot, None)
        self._clock.advance(self._disk_s)

    def submitted(self, batch: ForwardBatch) -> None:
        """Nothing: a modelled batch is over before the next transfer starts."""

    def failed(self) -> None:
        """Nothing."""

    def collected(self) -> None:
        """Nothing."""
