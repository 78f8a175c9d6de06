"""When each request is sent: by a schedule, by a number of clients, or both.

An *open loop* sends each request at its time, however slow the server is: that is how users
arrive. A *closed loop* has a number of clients that each send their next request when their last
one has ended, so a slow server is asked for less (Schroeder et al., "Open versus closed: a
cautionary tale", NSDI 2006). With both, at most so many scheduled requests are out at once; one
that waits for a free client keeps its scheduled time, so the wait counts. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from minserve.bench.http.records import RequestRecord
from minserve.clock import Clock
from minserve.config import ConfigError

Send = Callable[[RequestRecord], Awaitable[None]]
"""Sends the request with the record's number, waits for its end and fills in the record."""

POLL_S = 0.1
"""How often a stop is looked for."""


class Loop:
    """One run. `records` has every request that was due, in order of its schedule."""

    def __init__(
        self,
        gaps: Sequence[float],
        send: Send,
        clock: Clock,
        *,
        rate_per_s: float = math.inf,
        max_concurrency: int | None = None,
        on_record: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        """`gaps`: for each request, the time since the one before, in mean gaps. An infinite
        rate with `max_concurrency` is a closed loop, without it everything is due at the start.
        `on_record` is called whenever a request has ended.

        Raises ConfigError (a ValueError) for a rate or a concurrency that is not positive.
        """
        if not rate_per_s > 0:
            raise ConfigError(f"rate_per_s={rate_per_s}: expected a positive number of requests/s")
        if max_concurrency is not None and max_concurrency < 1:
            raise ConfigError(f"max_concurrency={max_concurrency}: expected at least 1 client")
        self.records: list[RequestRecord] = []
        self.lags_s: list[float] = []
        """How much longer than asked for each short sleep took: while the client is busy, answers
        wait for it too."""
        self._gaps = gaps
        self._send = send
        self._clock = clock
        self._rate_per_s = rate_per_s
        self._max_concurrency = max_concurrency
        self._on_record = on_record
        self._start_s = 0.0

    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock.now() - self._start_s

    async def run(self, should_stop: Callable[[], bool] = lambda: False) -> float:
        """Play everything; returns the seconds it took. A stop leaves what is still running as
        "interrupted"."""
        self._start_s = self._clock.now()
        closed = self._max_concurrency is not None and math.isinf(self._rate_per_s)
        playing = asyncio.create_task(self._closed() if closed else self._open())
        stopping = asyncio.create_task(self._watch(should_stop))
        try:
            await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (playing, stopping):
                task.cancel()
            await asyncio.wait({playing, stopping})
        for task in (playing, stopping):
            if not task.cancelled():
                task.result()  # raises what went wrong in it
        return self.now()

    async def _open(self) -> None:
        """Every request at its time."""
        clients = asyncio.Semaphore(self._max_concurrency) if self._max_concurrency else None
        due_s = 0.0
        async with asyncio.TaskGroup() as group:
            for number, gap in enumerate(self._gaps):
                due_s += gap / self._rate_per_s
                # Even when it is late already, so that the others may read their answers.
                await asyncio.sleep(max(0.0, due_s - self.now()))
                record = RequestRecord(number, scheduled_s=due_s, due_s=due_s)
                self.records.append(record)
                group.create_task(self._scheduled(record, clients))

    async def _scheduled(self, record: RequestRecord, clients: asyncio.Semaphore | None) -> None:
        if clients is None:
            await self._one(record)
            return
        waits = clients.locked()
        async with clients:
            if waits:
                record.due_s = self.now()
            await self._one(record)

    async def _closed(self) -> None:
        """A number of clients, each with one request at a time."""
        numbers = iter(range(len(self._gaps)))

        async def client() -> None:
            for number in numbers:
                now = self.now()
                record = RequestRecord(number, scheduled_s=now, due_s=now)
                self.records.append(record)
                await self._one(record)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._max_concurrency or 1, len(self._gaps))):
                group.create_task(client())

    async def _one(self, record: RequestRecord) -> None:
        record.sent_s = self.now()
        await self._send(record)
        self._on_record(record)

    async def _watch(self, should_stop: Callable[[], bool]) -> None:
        """Ends at a stop."""
        while not should_stop():
            before_s = self.now()
            await asyncio.sleep(POLL_S)
            self.lags_s.append(max(0.0, self.now() - before_s - POLL_S))
