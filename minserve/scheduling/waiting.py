"""The queue: requests by urgency, rank and arrival, with a limit on how long one can be overtaken.

A rank is computed when a request joins, and again when all are ranked again. A request that has
waited `limit_s` in total (`now - arrival`, less the time it ran) becomes urgent for the rest of
its life: urgent requests go before all others, and first come, first served among themselves. So
after the limit no later arrival goes ahead of it, whatever the order prefers. Knows nothing about
places and pages.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

from minserve.memory import IntegrityError
from minserve.request import Request
from minserve.scheduling.answers import checked_rank
from minserve.scheduling.policies.entry import QueueEntry
from minserve.scheduling.policies.queueing import QueuePolicy

Rank = tuple[bool, float]
"""(not urgent, rank): smaller goes first; between equals, the earlier arrival."""
_PLAIN = (float, int)


class WaitingQueue(Sequence[Request]):
    """Waiting requests, in the order in which they are admitted."""

    def __init__(self, order: QueuePolicy, limit_s: float | None = None) -> None:
        self._order = order
        self._limit_s = limit_s
        self._entries: dict[Request, QueueEntry] = {}
        self._num_entered = 0
        self._line: list[tuple[Rank, int, Request]] = []
        self._where: dict[Request, tuple[Rank, int, Request]] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._due: dict[Request, float] = {}
        self.stalled: set[Request] = set()
        """Running requests that get no tokens; this time counts as waiting."""

    def enter(self, request: Request) -> QueueEntry:
        """The request's entry; makes one, with the next arrival number, if it has none."""
        entry = self._entries.get(request)
        if entry is None:
            entry = self._entries[request] = QueueEntry(request, self._num_entered)
            self._num_entered += 1
        return entry

    def entry(self, request: Request) -> QueueEntry:
        """The entry of a request that has entered and not ended."""
        return self._entries[request]

    def forget(self, request: Request) -> None:
        """Remove a request that has ended, and its entry."""
        self.remove(request)
        self._entries.pop(request, None)
        if not self._due:
            self._deadlines.clear()  # entries of requests that have ended

    def rank_of(self, request: Request) -> Rank:
        """The request's current rank, without the arrival tie-break.

        Raises HookError if the order does not return a number.
        """
        entry = self._entries[request]
        if entry.urgent:
            return (False, 0.0)
        rank = self._order.rank(entry)
        if rank.__class__ not in _PLAIN or rank != rank:
            rank = checked_rank(self._order, request, rank)
        return (True, rank)

    def rank_in_line(self, request: Request) -> Rank:
        """The rank with which a waiting request was queued."""
        return self._where[request][0]

    def push(self, request: Request, now_s: float) -> None:
        """Queue a request whose wait begins now. If computing its rank raises, it is not queued."""
        self.enter(request)
        self.resume(request, now_s)
        self._insert(request)
        self._begin_wait(request, now_s)

    def _begin_wait(self, request: Request, now_s: float) -> None:
        entry = self._entries[request]
        entry.waiting_since_s = now_s
        if self._limit_s is not None and not entry.urgent:
            due_s = now_s + self._limit_s - entry.waited_s
            # One deadline per request and time, so comparing two tuples never
            # compares two requests.
            if self._due.get(request) != due_s:
                heapq.heappush(self._deadlines, (due_s, entry.arrival_number, request))
            self._due[request] = due_s

    def stall(self, request: Request, now_s: float) -> None:
        """Mark a running request that gets no tokens in this step, because others rank before it.
        It waits like a queued request, and can become urgent like one."""
        if request not in self.stalled:
            self.stalled.add(request)
            self._begin_wait(request, now_s)

    def resume(self, request: Request, now_s: float) -> None:
        """Unmark a stalled request, because it gets tokens again. Does nothing for other
        requests."""
        if request in self.stalled:
            self.stalled.discard(request)
            self._due.pop(request, None)
            self._end_wait(request, now_s)

    def pop(self, now_s: float) -> Request:
        """Remove and return the first request; its wait ends now."""
        request = self._line[0][2]
        self.remove(request)
        self._end_wait(request, now_s)
        return request

    def _end_wait(self, request: Request, now_s: float) -> None:
        entry = self._entries[request]
        entry.waited_s += now_s - entry.waiting_since_s

    def remove(self, request: Request) -> bool:
        """Remove a request from the queue and from the stalled ones. False if it was
        not in the queue."""
        self._due.pop(request, None)
        self.stalled.discard(request)
        if request not in self._where:
            return False
        self._take(request)
        return True

    def _take(self, request: Request) -> None:
        item = self._where[request]
        index = bisect_left(self._line, item)
        if index < len(self._line) and self._line[index] is item:
            del self._line[index]
        else:  # An interrupt came between two updates that belong together.
            self._line = [other for other in self._line if other[2] is not request]
        del self._where[request]

    def promote(self, now_s: float) -> None:
        """Make requests urgent that have waited for the limit."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            due_s, _, request = heapq.heappop(self._deadlines)
            # If it has run meanwhile, it has another deadline.
            if self._due.get(request) == due_s:
                del self._due[request]
                waits = request in self._where  # else it is stalled, and has a place already
                if waits:
                    self._take(request)
                self._entries[request].urgent = True
                if waits:
                    self._insert(request)

    def rank_anew(self, rank_of: Callable[[Request], Rank]) -> None:
        """Compute every rank again, because what the ranks depend on has changed."""
        where = {one: (rank_of(one), number, one) for _, number, one in self._line}
        self._line, self._where = sorted(where.values()), where

    def _insert(self, request: Request) -> None:
        item = (self.rank_of(request), self._entries[request].arrival_number, request)
        # Record the item first: without it, a request in the line could not be removed again.
        self._where[request] = item
        insort(self._line, item)

    def known(self) -> set[Request]:
        """The requests that have entered and not ended."""
        return set(self._entries)

    def check(self, running: Iterable[Request] = ()) -> None:
        """Verify that queue, entries and deadlines agree, and that stalled requests are running.
        Raises IntegrityError."""
        line = self._line
        if not self.stalled.issubset(running):
            raise IntegrityError("a request that does not run is stalled")
        if any(first[:2] >= second[:2] for first, second in pairwise(line)):
            raise IntegrityError("the waiting queue is out of order, or holds a request twice")
        if len(line) != len(self._where) or any(self._where.get(e[2]) is not e for e in line):
            raise IntegrityError("the waiting queue and its notes hold different requests")
        if not self._due.keys() <= self._where.keys() | self.stalled:
            raise IntegrityError("a request that does not wait has a deadline")
        if not self._entries.keys() >= self._where.keys() | set(running):
            raise IntegrityError("a request waits or runs of which the queue knows nothing")
        deadlines = {(request, due_s) for due_s, _, request in self._deadlines}
        if not deadlines.issuperset(self._due.items()):
            raise IntegrityError("a waiting request would miss its deadline")

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return (item[2] for item in self._line)

    def __contains__(self, request: object) -> bool:
        return request in self._where

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return [item[2] for item in self._line[index]]
        return self._line[index][2]
