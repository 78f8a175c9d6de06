"""Carries one request's chunks from the engine's thread to its readers, in any thread.

Knows nothing about the engine: the engine's thread puts chunks, readers take them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minserve.frontend.outputs import StreamChunk
from minserve.frontend.thread.wakeups import Wakeups
from minserve.request import Request

Item = StreamChunk | BaseException | None


class Mailbox:
    """The chunks of one request, in order; the last item is None or the error that ended it."""

    def __init__(self, request_id: str, wakeups: Wakeups) -> None:
        self.request_id = request_id
        self._wakeups = wakeups
        self.requests: list[Request] = []
        """The request's samples, after the engine has accepted it."""
        self.accepted = False
        """True after the engine has accepted the request."""
        self.aborted = False
        self.ended = False
        """True after a reader has taken the last item."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        # Reentrant: a signal handler or a finalizer may interrupt this code and call it.
        self._lock = threading.RLock()
        self._closed = False

    def accept(self, requests: list[Request]) -> None:
        """Note that the engine has accepted the request, as these samples."""
        self.requests = requests
        with self._lock:
            self.accepted = True
            self._wake()

    def put(self, item: Item) -> None:
        """Add a chunk, an error, or None for the end. Ignored after the end."""
        with self._lock:
            if self._closed:
                return
            self._closed = not isinstance(item, StreamChunk)
            self._items.put(item)
            self._wake()

    def _wake(self) -> None:
        for loop, event in self._listeners:
            self._wakeups.wake(loop, event)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event of the running loop, set whenever an item is added."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.append(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def take(self, block: bool, timeout_s: float | None = None) -> StreamChunk | None:
        """The next chunk; None at the end and at every call after it.

        Raises queue.Empty if there is no item yet (with `block`: none within `timeout_s`), and the
        error that ended the request, once.
        """
        if self.ended:
            return None
        item = self._items.get(block=block, timeout=timeout_s)
        if isinstance(item, StreamChunk):
            return item
        self.ended = True
        # Other threads and tasks may be waiting for the same end.
        self._items.put(None)
        with self._lock:
            self._wake()
        if item is not None:
            raise item
        return None

    async def wait_accepted(self) -> None:
        """Wait until the engine has accepted the request. Raises the error with which it was
        refused; the mailbox has ended then."""
        with self.listening() as event:
            while not self.accepted:
                event.clear()
                if self._closed and not self.accepted:
                    self.take(block=False)
                    return
                if not self.accepted:
                    await event.wait()

    async def next(self) -> StreamChunk | None:
        """As `take`, and waits for an item without blocking the running event loop."""
        with self.listening() as event:
            while True:
                event.clear()
                try:
                    return self.take(block=False)
                except queue.Empty:
                    await event.wait()
