"""Swapping: a preempted request's pages wait in host slots until it returns.

Every cache group has slots of its own; a request is swapped out in all of them or in none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.group import PageGroup
from minserve.memory.reuse import Found
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class _Away:
    firsts: list[int]
    """By cache group: index of the first saved page."""
    slots: list[list[int]]
    """By cache group: the slot of each saved page."""


class SwappedRequests:
    """The host slots of each swapped-out request, which still counts its tokens as computed. Empty
    without host tiers."""

    def __init__(self, groups: Sequence[PageGroup], clock: Clock, events: MemoryEvents) -> None:
        self._groups = groups
        self._clock = clock
        self._events = events
        self._swapped: dict[Request, _Away] = {}

    def __contains__(self, request: Request) -> bool:
        return request in self._swapped

    def requests(self) -> set[Request]:
        """The requests that are swapped out."""
        return set(self._swapped)

    def firsts(self, request: Request) -> list[int] | None:
        """By cache group: index of the request's first saved page; None if it is not away."""
        away = self._swapped.get(request)
        return None if away is None else away.firsts

    def save(self, request: Request) -> bool:
        """Copy the pages of a request's computed tokens to the host. False, with nothing changed,
        if a group has no room there."""
        pages = [group.committed(request) for group in self._groups]
        slots: list[list[int]] = []
        start = self._clock.now()
        try:
            for group, (_, blocks) in zip(self._groups, pages, strict=True):
                taken = None if group.host is None else group.host.swap_out(blocks)
                if taken is None:
                    break
                slots.append(taken)
        except BaseException:
            self._release(slots)
            raise
        self._events.transfer_s += self._clock.now() - start
        if len(slots) < len(pages):
            self._release(slots)
            return False
        self._events.swapped_out_blocks += sum(map(len, slots))
        self._swapped[request] = _Away([first for first, _ in pages], slots)
        return True

    def restore(self, request: Request, found: Found) -> None:
        """Bring a request back into its empty block tables. Pages that the prefix cache still has
        on the device are shared; the others are loaded."""
        start = self._clock.now()
        away = self._swapped[request]
        for group, hit, slots in zip(self._groups, found.hits, away.slots, strict=True):
            table, shared = group.tables[request], len(hit.blocks)
            group.share(table, hit)
            loaded = group.pool.allocate(len(slots) - shared)
            group.tables.extend(table, loaded)
            assert group.host is not None
            group.host.load(slots[shared:], loaded)
            self._events.swapped_in_blocks += len(loaded)
        self.drop(request)
        self._events.transfer_s += self._clock.now() - start

    def drop(self, request: Request) -> None:
        """Free the slots of a request that is back or will not return. Does nothing for a request
        without slots."""
        away = self._swapped.pop(request, None)
        if away is not None:
            self._release(away.slots)

    def _release(self, slots: Sequence[list[int]]) -> None:
        for group, taken in zip(self._groups, slots, strict=False):
            if group.host is not None:
                group.host.release(taken)

    def holders(self, group: int) -> list[list[int]]:
        """The slots of each request in a group."""
        return [away.slots[group] for away in self._swapped.values()]

    def reset(self) -> None:
        """Forget every request; does not change the host tiers."""
        self._swapped.clear()
