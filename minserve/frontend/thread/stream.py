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

    async def accepted(self) -> None:
        """Wait until the engine has accepted the request; its first token may come much later.

        Raises InvalidRequestError or QueueFullError if it was refused, RuntimeError if the engine
        is closed; the stream has ended then.
        """
        self._check_process()
        await self._mailbox.wait_accepted()

    def __iter__(self) -> Iterator[StreamChunk]:
        self._check_process()
        try:
            while (chunk := self._mailbox.take(block=True)) is not None:
                yield chunk
                self._check_process()
        finally:
            self._leave()

    def __aiter__(self) -> AsyncReader:
        return AsyncReader(self)

    def _check_process(self) -> None:
        check_process(self._thread.process, "AsyncLLM")

    def _leave(self) -> None:
        if not self._mailbox.ended:
            self.abort()


class AsyncReader(AsyncIterator[StreamChunk]):
    """One asyncio reader of a stream. Leaves when it is dropped: an async generator needs its event
    loop for that, and the loop may be closed."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = False

    async def __anext__(self) -> StreamChunk:
        if self._left:
            raise StopAsyncIteration
        try:
            self._stream._check_process()
            chunk = await self._stream._mailbox.next()
        except BaseException:
            self._leave()
            raise
        if chunk is None:
            self._leave()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Abort the request, if it has not ended."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._left = True
        self._stream._leave()


def read_to_end(stream: Stream, timeout_s: float | None) -> None:
    """Read a stream to its end. After `timeout_s` (None: no limit) raise EngineError. However this
    ends, the request has ended or is aborted."""
    clock = WallClock()
    start_s = clock.now()

    def left_s() -> float | None:
        return None if timeout_s is None else max(0.0, start_s + timeout_s - clock.now())

    try:
        while stream._mailbox.take(True, left_s()) is not None:
            pass
    except queue.Empty:
        assert timeout_s is not None
        raise late(timeout_s) from None
    finally:
        stream._leave()
