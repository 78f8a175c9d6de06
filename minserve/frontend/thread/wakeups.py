"""Wakes the event loops of readers: once a loop for all chunks of a step, not once a chunk.

Waking a loop from another thread costs a system call. With hundreds of streams in one loop that
would be hundreds of calls a step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class Wakeups:
    """Sets events of event loops. Calls may come from any thread."""

    def __init__(self) -> None:
        self._batch: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] | None = None
        self._batch_thread: int | None = None

    def wake(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set an event: at the end of `together`, if this thread is in it, otherwise at once."""
        batch = self._batch
        if batch is not None and threading.get_ident() == self._batch_thread:
            batch.setdefault(loop, []).append(event)
        else:
            _set(loop, [event])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread wakes in here is woken at the end, with one call for each loop. One
        thread at a time."""
        self._batch_thread = threading.get_ident()
        batch: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None
            for loop, events in batch.items():
                _set(loop, events)


def _set(loop: asyncio.AbstractEventLoop, events: Sequence[asyncio.Event]) -> None:
    with suppress(RuntimeError):  # the reader's event loop may be closed already
        loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()
