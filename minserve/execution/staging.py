"""Copies batches to the device and results back, without making the host wait.

All tensors of a batch are packed into one pinned buffer and sent in one copy, because a copy from
pageable memory, or a dozen small copies, would block the host. The copy is only queued, so a buffer
is written again only after an event reports that the device has read it: otherwise planning the
next batch would change the one in flight. Knows nothing about what the tensors mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from minserve.batch import map_tensors

_Data = TypeVar("_Data", bound=Any)

ALIGNMENT = 16
"""Tensors begin at multiples of this many bytes: Triton compiles for addresses divisible by 16."""
NUM_BUFFERS = 3
"""One buffer being filled and two in flight: with overlap of depth 1, the host never waits for
one."""


class Event(Protocol):
    """A mark after everything that was queued when it was made."""

    def synchronize(self) -> None:
        """Wait until the device has reached this mark."""
        ...


class Copies(Protocol):
    """The copies that a link needs from a device. They are queued in order with the device's
    work."""

    def buffer(self, num_bytes: int) -> Tensor:
        """uint8 `[num_bytes]` on the host, from which the device can copy by itself."""
        ...

    def send(self, buffer: Tensor) -> Tensor:
        """A copy of `buffer` on the device, made when the queued copy runs."""
        ...

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy on the host; its contents are valid after a later `mark` has been reached."""
        ...

    def mark(self) -> Event:
        """An event after everything queued so far."""
        ...


class CudaCopies:
    """Copies on the current stream of an NVIDIA GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffer(self, num_bytes: int) -> Tensor:
        """See `Copies.buffer`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def send(self, buffer: Tensor) -> Tensor:
        """See `Copies.send`."""
        return buffer.to(self._device, non_blocking=True)

    def fetch(self, tensor: Tensor) -> Tensor:
        """See `Copies.fetch`: a new pinned tensor that nothing else writes to."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> Event:
        """See `Copies.mark`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


@dataclass(frozen=True)
class PendingCopy(Generic[_Data]):
    """Results that are being copied to the host."""

    data: _Data
    event: Event | None

    def wait(self) -> _Data:
        """The results; blocks until they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.data


class Link(Protocol):
    """Copies batches to the device and results back."""

    def upload(self, batch: _Data) -> _Data:
        """The batch with every tensor on the device. The host's tensors may change afterwards."""
        ...

    def download(self, results: _Data) -> PendingCopy[_Data]:
        """Start copying results, a data class of tensors, to the host."""
        ...


class DirectLink:
    """For a device that is the host: copies nothing."""

    def upload(self, batch: _Data) -> _Data:
        """See `Link.upload`: returns the same tensors, unchanged."""
        return batch

    def download(self, results: _Data) -> PendingCopy[_Data]:
        """See `Link.download`."""
        return PendingCopy(results, None)


class _Buffer:
    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self.read: Event | None = None


class StagedLink:
    """A ring of pinned buffers; each is used again after the device has read it."""

    def __init__(self, copies: Copies, num_buffers: int = NUM_BUFFERS) -> None:
        self._copies = copies
        self._ring = [_Buffer() for _ in range(num_buffers)]
        self._next = 0

    def upload(self, batch: _Data) -> _Data:
        """See `Link.upload`."""
        # A tensor that several fields share is copied once.
        offsets: dict[int, tuple[Tensor, int]] = {}
        size = 0

        def assign(tensor: Tensor) -> Tensor:
            nonlocal size
            if id(tensor) not in offsets:
                offsets[id(tensor)] = (tensor, size)
                size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            return tensor

        map_tensors(batch, assign)
        buffer = self._take(size)
        for tensor, start in offsets.values():
            _view(buffer.bytes, start, tensor).copy_(tensor)
        sent = self._copies.send(buffer.bytes[:size])
        buffer.read = self._copies.mark()
        return map_tensors(batch, lambda tensor: _view(sent, offsets[id(tensor)][1], tensor))

    def download(self, results: _Data) -> PendingCopy[_Data]:
        """See `Link.download`."""
        data = map_tensors(results, self._copies.fetch)
        return PendingCopy(data, self._copies.mark())

    def _take(self, num_bytes: int) -> _Buffer:
        buffer = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        if buffer.read is not None:
            buffer.read.synchronize()
        if buffer.bytes.numel() < num_bytes:
            # A power of two, so that growing batches do not allocate at every step.
            buffer.bytes = self._copies.buffer(1 << (num_bytes - 1).bit_length())
        return buffer


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of `buffer` that holds a tensor of this shape and type."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def link_to(device: torch.device) -> Link:
    """The link of an engine whose tensors are on `device`."""
    return DirectLink() if device.type == "cpu" else StagedLink(CudaCopies(device))
