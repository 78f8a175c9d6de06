"""One streamed request of an `LLM`: reading it steps the shared engine."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

from minserve.frontend.outputs import StreamChunk
from minserve.frontend.share import REENTERED, EngineShare
from minserve.request import Request, SamplingParams


class ChunkStream(Iterator[StreamChunk]):
    """The chunks of one streamed request. Threads that read one stream take turns. Leaving early,
    or `close()`, aborts the request."""

    def __init__(
        self,
        share: EngineShare,
        name: str,
        token_ids: list[int],
        params: SamplingParams,
        arrival_s: float | None = None,
    ) -> None:
        self._share = share
        self._name = name
        self._chunks = _chunks(share, name, token_ids, params, arrival_s)
        self._turn = threading.RLock()
        self._running = False
        self._left = False
        """`close()` was called in the middle of `next` in the same thread."""

    def __next__(self) -> StreamChunk:
        self._share.check_here()  # before the lock, which a fork may have copied while it was held
        with self._turn:
            if self._running:
                raise RuntimeError(REENTERED)
            try:
                self._running = True
                chunk = next(self._chunks)
                if self._left:
                    self._chunks.close()
                return chunk
            except BaseException:
                self._share.tell()
                raise
            finally:
                self._running = False

    def close(self) -> None:
        """Abort the request, if it has not ended. Calling it twice does no harm. In the middle of
        `next` of the same thread (a signal handler): at the end of the step."""
        if not self._share.is_here:
            return  # the request runs in the parent process
        with self._turn:
            if self._running:
                self._left = True
                self._share.leave(self._name, ())
            else:
                self._chunks.close()
        self._share.tell()


def _chunks(
    share: EngineShare,
    name: str,
    token_ids: list[int],
    params: SamplingParams,
    arrival_s: float | None,
) -> Generator[StreamChunk, None, None]:
    requests: tuple[Request, ...] = ()
    try:
        reader = share.open(name, token_ids, params, arrival_s)
        requests = tuple(reader.requests)
        while chunks := share.next_chunks(reader):
            yield from chunks
    finally:
        # The garbage collector may run this in the middle of a step, when the engine must not be
        # called: `leave` only records that the caller has left.
        share.leave(name, requests)
