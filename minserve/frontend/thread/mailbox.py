"""Carries one request's chunks from the engine's thread to its readers, in any thread.

Knows nothing about the engine: the engine's thread puts chunks, readers take them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minserve.frontend.outputs import StreamChunk
from minserve.request import Request

Item = StreamChunk | BaseException | None


class Mailbox:
    """The chunks of one request, in order; the last item is None or the error that ended it."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.requests: list[Request] = []
        """The request's samples, after the engine has accepted it."""
        self.aborted = False
        self.ended = False
        """True after a reader has taken the last item."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        # Reentrant: a signal handler or a finalizer may interrupt this code and call it.
        self._lock = threading.RLock()
        self._closed = False

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
            # The reader's event loop may be closed already.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

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

    async def next(self) -> StreamChunk | None:
        """As `take`, and waits for an item without blocking the running event loop."""
        with self.listening() as event:
            while True:
                event.clear()
                try:
                    return self.take(block=False)
                except queue.Empty:
                    await event.wait()
