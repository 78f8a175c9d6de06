"""Swapped-out requests: which host slots keep their pages until they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minserve.memory.tiers.host import HostTier
from minserve.request import Request


class SwappedRequests:
    """The host slots of each swapped-out request, which still counts its tokens as computed. Empty
    without a host tier."""

    def __init__(self, host: HostTier | None) -> None:
        self._host = host
        self._swapped: dict[Request, list[int]] = {}

    def __contains__(self, request: Request) -> bool:
        return request in self._swapped

    def requests(self) -> set[Request]:
        """The requests that are swapped out."""
        return set(self._swapped)

    def num_slots(self, request: Request) -> int:
        """Slots of a swapped-out request: one for each of its pages."""
        return len(self._swapped[request])

    def save(self, request: Request, blocks: Sequence[int]) -> bool:
        """Copy a request's pages to the host. False, with nothing changed, if there is no room."""
        slots = self._host.swap_out(blocks) if self._host is not None else None
        if slots is None:
            return False
        self._swapped[request] = slots
        return True

    def restore(self, request: Request, first: int, blocks: Sequence[int]) -> None:
        """Copy a request's slots, starting at slot `first`, into device pages, and free all of
        them."""
        slots = self._swapped[request]
        assert self._host is not None
        self._host.load(slots[first:], blocks)
        del self._swapped[request]
        self._host.release(slots)

    def drop(self, request: Request) -> None:
        """Free the slots of a request that will not return. Does nothing for a
        request without slots."""
        slots = self._swapped.pop(request, ())
        if slots and self._host is not None:
            self._host.release(slots)

    def holders(self) -> Iterator[list[int]]:
        """The slots of each request."""
        return iter(self._swapped.values())

    def reset(self) -> None:
        """Forget every request; does not change the host tier."""
        self._swapped.clear()
