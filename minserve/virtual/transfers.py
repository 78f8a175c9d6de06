"""Copies of pages between a modelled device and its host, as tickets with completion times.

A link does one transfer after the other in each direction. The engine starts a save and does not
wait for it. A load waits for its own ticket, and before that for the ticket of the save that filled
its slot, because that save may not be done yet. Knows bytes and times, no content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock


@dataclass(frozen=True)
class HostLink:
    """The connection between a device and its host."""

    bytes_per_s: float = 50e9
    """In each direction. An assumption: PCIe 5.0 with 16 lanes is 63 GB/s by its specification, and
    copies of pages do not reach all of it."""
    latency_s: float = 10e-6
    """Seconds added to every transfer, whatever its size."""
    disk_bytes_per_s: float = 5e9
    """Between the host and its disk, in each direction. An assumption: one NVMe
    drive of a server."""

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
    """Completion time by the virtual clock."""


class Direction:
    """One direction of a link: each transfer waits for the one before."""

    def __init__(self, link: HostLink, clock: VirtualClock) -> None:
        self._link, self._clock = link, clock
        self._free_s = 0.0

    def start(self, num_bytes: int, not_before_s: float = 0.0) -> Ticket:
        """Queue a transfer that begins at `not_before_s` or later."""
        begin_s = max(self._clock.now(), self._free_s, not_before_s)
        self._free_s = begin_s + self._link.latency_s + num_bytes / self._link.bytes_per_s
        return Ticket(num_bytes, self._free_s)


class VirtualStore:
    """A `PageStore` of pages without content whose transfers take modelled time. All its groups
    share one link."""

    def __init__(
        self,
        block_bytes: Sequence[int],
        clock: VirtualClock,
        link: HostLink,
        device_bytes_per_s: float | None = None,
    ) -> None:
        """`block_bytes`: bytes of a page of each cache group. `device_bytes_per_s` is the device's
        memory bandwidth; None: copies on the device take no time."""
        ways = Direction(link, clock), Direction(link, clock)
        self._groups = tuple(
            VirtualPages(size, clock, link, ways, device_bytes_per_s) for size in block_bytes
        )

    def group(self, number: int) -> VirtualPages:
        """See `PageStore.group`."""
        return self._groups[number]

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        """Does nothing: a modelled batch ends before the next transfer starts."""

    def failed(self) -> None:
        """Does nothing."""

    def collected(self) -> None:
        """Does nothing."""


class VirtualPages:
    """The `BlockStore` of one cache group of a `VirtualStore`."""

    def __init__(
        self,
        block_bytes: int,
        clock: VirtualClock,
        link: HostLink,
        ways: tuple[Direction, Direction],
        device_bytes_per_s: float | None,
    ) -> None:
        self._block_bytes, self._clock = block_bytes, clock
        self._device_bytes_per_s = device_bytes_per_s
        self._disk_s = block_bytes / link.disk_bytes_per_s
        self._out, self._in = ways
        self._filled: dict[int, Ticket] = {}

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Read and write the pages once, on the device."""
        if self._device_bytes_per_s:
            moved = 2 * len(targets) * self._block_bytes
            self._clock.advance(moved / self._device_bytes_per_s)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Does nothing: the few tokens of an accepted branch take no modelled time."""

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Start a transfer to the host; only reading its slots waits for it."""
        if slots:
            ticket = self._out.start(len(slots) * self._block_bytes)
            self._filled.update(dict.fromkeys(slots, ticket))

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Transfer to the device and wait, because the next batch reads these pages."""
        if slots:
            saved_s = max((self._filled[s].done_s for s in slots if s in self._filled), default=0.0)
            ticket = self._in.start(len(slots) * self._block_bytes, saved_s)
            self._clock.wait_until(ticket.done_s)

    def read(self, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """Nothing; waits for the transfer of the pages to the host."""
        if blocks:
            self._clock.wait_until(self._out.start(len(blocks) * self._block_bytes).done_s)
        return ()

    def read_host(self, slots: Sequence[int]) -> tuple[Tensor, ...]:
        """Nothing; waits until the slots are filled."""
        done_s = [self._filled[slot].done_s for slot in slots if slot in self._filled]
        self._clock.wait_until(max(done_s, default=0.0))
        return ()

    def write(self, blocks: Sequence[int], pages: Sequence[Tensor]) -> None:
        """Transfer to the device and wait."""
        if blocks:
            self._clock.wait_until(self._in.start(len(blocks) * self._block_bytes).done_s)

    def token_shapes(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()

    def read_slot(self, slot: int) -> memoryview:
        """No bytes; waits until they have arrived and are written to the disk."""
        if slot in self._filled:
            self._clock.wait_until(self._filled[slot].done_s)
        self._clock.advance(self._disk_s)
        return memoryview(b"")

    def write_slot(self, slot: int, data: bytes) -> None:
        """Fill the slot from the disk; loading it then waits for no transfer from the device."""
        self._filled.pop(slot, None)
        self._clock.advance(self._disk_s)
