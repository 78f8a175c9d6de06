"""The queue: requests by urgency, rank and arrival, and the bound on how long anybody is overtaken.

A rank is taken when a request joins, and when all are ranked anew. Whoever has waited `limit_s` in
all (`now - arrival`, less the time it ran) becomes urgent for good: urgent requests go before all
others, first come first served among themselves. So after the limit nobody is overtaken by a later
arrival, whatever the order prefers. Knows nothing about places and pages.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import overload

from minserve.request import Request
from minserve.scheduling.order import Order

Rank = tuple[bool, float]
"""(not urgent, rank): smaller goes first; arrival decides between equals."""


class WaitingQueue(Sequence[Request]):
    """Waiting requests, first in line first."""

    def __init__(self, order: Order, limit_s: float | None = None) -> None:
        self._order = order
        self._limit_s = limit_s
        self._line: list[tuple[Rank, int, Request]] = []
        self._where: dict[Request, tuple[Rank, int, Request]] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._due: dict[Request, float] = {}

    def rank_of(self, request: Request) -> Rank:
        """Where the request stands now, arrival aside."""
        return (False, 0.0) if request.urgent else (True, self._order.rank(request))

    def push(self, request: Request, now_s: float) -> None:
        """Queue a request that begins to wait now."""
        request.waiting_since_s = now_s
        self._insert(request)
        if self._limit_s is not None and not request.urgent:
            due_s = now_s + self._limit_s - request.waited_s
            # One deadline per request and moment: a tuple never comes to compare two requests.
            if self._due.get(request) != due_s:
                heapq.heappush(self._deadlines, (due_s, request.arrival_number, request))
            self._due[request] = due_s

    def pop(self, now_s: float) -> Request:
        """Take the first in line, whose wait ends now."""
        request = self._line[0][2]
        self.remove(request)
        request.waited_s += now_s - request.waiting_since_s
        return request

    def remove(self, request: Request) -> None:
        """Take out a request wherever it stands."""
        self._take(request)
        self._due.pop(request, None)

    def _take(self, request: Request) -> None:
        del self._line[bisect_left(self._line, self._where.pop(request))]

    def promote(self, now_s: float) -> None:
        """Make urgent whoever has waited for the limit."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            due_s, _, request = heapq.heappop(self._deadlines)
            # It may have run meanwhile, and then has another deadline.
            if self._due.get(request) == due_s:
                del self._due[request]
                if request in self._where:
                    self._take(request)
                    request.urgent = True
                    self._insert(request)

    def rank_anew(self) -> None:
        """Take everybody's rank again: what it hangs on has changed."""
        self._where = {
            one: (self.rank_of(one), one.arrival_number, one) for _, _, one in self._line
        }
        self._line = sorted(self._where.values())

    def _insert(self, request: Request) -> None:
        entry = (self.rank_of(request), request.arrival_number, request)
        self._where[request] = entry
        insort(self._line, entry)

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self._line)

    def __contains__(self, request: object) -> bool:
        return request in self._where

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return [entry[2] for entry in self._line[index]]
        return self._line[index][2]
