"""The reader's side of a mailbox: chunks with `for`, or with `async for`."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator

from minserve.clock import WallClock
from minserve.frontend.arguments import check_process
from minserve.frontend.outputs import StreamChunk
from minserve.frontend.thread.inbox import late
from minserve.frontend.thread.loop import EngineThread
from minserve.frontend.thread.mailbox import Mailbox


class Stream:
    """The chunks of one request, with `for` or with `async for`; several readers share them.

    The last chunk ends the stream; after that, every iteration stops at once. A reader that
    leaves earlier aborts the request, and so does `asyncio.wait_for` around one chunk when
    its time is over.
    """

    def __init__(self, mailbox: Mailbox, thread: EngineThread, owner: object) -> None:
        self.request_id = mailbox.request_id
        self._mailbox = mailbox
        self._thread = thread
        # Keeps the AsyncLLM, and with it the engine, alive while the stream is read.
        self._owner = owner

    def abort(self) -> None:
        """End this request, and no other with the same name; the stream then ends
        with reason "abort"."""
        self._thread.abort(self._mailbox)

    def __iter__(self) -> Iterator[StreamChunk]:
        self._check_process()
        try:
            while (chunk := self._mailbox.take(block=True)) is not None:
                yield chunk
                self._check_process()
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        self._check_process()
        try:
            with self._mailbox.listening() as event:
                while True:
                    event.clear()
                    try:
                        chunk = self._mailbox.take(block=False)
                    except queue.Empty:
                        await event.wait()
                        continue
                    if chunk is None:
                        return
                    yield chunk
                    self._check_process()
        finally:
            self._leave()

    def _check_process(self) -> None:
        check_process(self._thread.process, "AsyncLLM")

    def _leave(self) -> None:
        if not self._mailbox.ended:
            self.abort()


def read_to_end(stream: Stream, timeout_s: float) -> None:
    """Read a stream to its end. After `timeout_s`: abort it and raise EngineError."""
    clock = WallClock()
    end_s = clock.now() + timeout_s
    try:
        while stream._mailbox.take(True, max(0.0, end_s - clock.now())) is not None:
            pass
    except queue.Empty:
        stream.abort()
        raise late(timeout_s) from None
