"""One engine shared by several callers: a caller that waits for tokens steps it for all of them.

The lock is held only while the engine is used, never while a caller's code runs. Callers do not
affect each other: an error is raised in the call whose request it ended. A caller may leave at any
time, even if the garbage collector or a signal handler runs in the middle of a step of the same
thread; its request then ends as soon as the engine is free.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from minserve.engine import Engine
from minserve.engine.recovery import EngineError, is_interrupt
from minserve.frontend.arguments import check_process
from minserve.frontend.outputs import StreamChunk, StreamCursor, failure, failure_of
from minserve.request import Request, SamplingParams
from minserve.trace import RunTrace

CLOSED = "this LLM is closed; make a new one"
REENTERED = (
    "this LLM was called by a signal handler or a finalizer in the middle of a call of the same "
    "thread: set a flag there, and call it when the call has ended (close() and unpin() are safe)"
)
MOST_FAILURES = 5
"""After this many failed steps in succession that ended no request, the error is raised."""


class Reader:
    """A stream's state in the engine: its samples, and the chunks that it has not taken yet."""

    def __init__(self, name: str, requests: Sequence[Request]) -> None:
        self.name = name
        self.requests = requests
        self.cursors = {request: StreamCursor() for request in requests}
        self.chunks: deque[StreamChunk] = deque()
        self.failure: EngineError | None = None
        """The error because of which no more chunks can be made; None while they can."""

    def take(self) -> list[StreamChunk]:
        """The chunks made since the last call. The engine must be held, because other
        threads add chunks."""
        chunks = list(self.chunks)
        self.chunks.clear()
        return chunks

    @property
    def finished(self) -> bool:
        """True if no more chunks will come."""
        return self.failure is not None or all(request.finished for request in self.requests)


class EngineShare:
    """Shares one engine, as described at the top of this file. Methods with an `engine` argument
    are called while `hold` is entered."""

    def __init__(self, engine: Engine, fresh_trace: Callable[[], RunTrace]) -> None:
        self._engine: Engine | None = engine
        self._fresh_trace = fresh_trace
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._readers: dict[Request, Reader] = {}
        self._departed: deque[tuple[str, Sequence[Request]]] = deque()
        """Requests whose callers have left."""
        self._unpinned: deque[int] = deque()
        self._close_wanted = False
        self._num_failures = 0
        self.num_ended = 0
        """Requests that have ended so far; while the number is the same, no request has ended."""

    @property
    def engine(self) -> Engine:
        """The engine. Raises RuntimeError after `close()`."""
        if self._engine is None:
            raise RuntimeError(CLOSED)
        return self._engine

    @property
    def is_idle(self) -> bool:
        """True if no request is live."""
        engine = self._engine
        return engine is None or not engine.has_requests

    @property
    def is_here(self) -> bool:
        """False in a process that was forked from the one with the engine: locks that were held
        at that moment are never released there."""
        return os.getpid() == self._process

    def check_here(self) -> None:
        """Raise RuntimeError in a forked process."""
        check_process(self._process, "LLM")

    @contextmanager
    def hold(self) -> Iterator[Engine]:
        """The engine, for this thread alone. Raises RuntimeError if it is closed, after a fork, or
        if this thread holds it already."""
        self.check_here()
        if self._is_held_here:
            raise RuntimeError(REENTERED)
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield self.engine
                self._tell_waiting()
            finally:
                self._holder = None

    @property
    def _is_held_here(self) -> bool:
        return self._holder == threading.get_ident()

    def start_run(self, engine: Engine, *, alone: bool) -> None:
        """Start a new trace, unless a request is already running. `alone`: no request except
        streams should be live; any other was left behind by an interrupted call, and is ended."""
        self._tell_departed(engine)
        if alone:
            orphans = [one for one in engine.live_requests() if one not in self._readers]
            engine.abort_requests(orphans)
            for request in orphans:
                engine.forget(request)
            self._settle(engine)
        if not engine.has_work:
            engine.trace = self._fresh_trace()

    def advance(self) -> None:
        """Run one step for all requests, and deliver its chunks to the readers."""
        if self._engine is None:
            return  # Another thread has closed it: all requests have ended.
        with self.hold() as engine:
            self._step(engine)

    def open(
        self, name: str, ids: list[int], params: SamplingParams, arrival_s: float | None = None
    ) -> Reader:
        """Open a stream over a new request."""
        with self.hold() as engine:
            self.start_run(engine, alone=False)
            samples = engine.add(name, ids, params, stream_text=True, arrival_s=arrival_s)
            reader = Reader(name, samples)
            self._readers.update(dict.fromkeys(reader.requests, reader))
            return reader

    def next_chunks(self, reader: Reader) -> list[StreamChunk]:
        """The chunks that the reader has not taken yet; steps the engine until there are some.
        Empty at the end. Raises EngineError at the end if the request failed."""
        while True:
            if self._engine is None:
                chunks = reader.take()
            else:
                with self.hold() as engine:
                    if not reader.chunks and not reader.finished:
                        self._step(engine)
                    if reader.finished:
                        # Deliver what an interrupted call of another thread has not delivered.
                        self._deliver(engine, [r for r, c in reader.cursors.items() if not c.ended])
                    chunks = reader.take()
            if chunks:
                return chunks
            if reader.finished:
                told = reader.failure or failure_of(reader.requests)
                if told is not None:
                    raise told
                return []

    def leave(self, name: str, requests: Sequence[Request]) -> None:
        """Record that the caller of these requests has left. Safe at any time, in any thread."""
        self._departed.append((name, requests))

    def unpin(self, handle: int) -> None:
        """Allow a pin's pages to be evicted again, now or when the engine is free."""
        self._unpinned.append(handle)
        self.tell()

    def tell(self) -> None:
        """End the requests whose callers have left. If this thread is in the middle of a step, at
        the end of that step."""
        if self._engine is None or not self.is_here or self._is_held_here:
            return
        try:
            with self.hold():
                pass
        except RuntimeError:
            if self._engine is not None:  # None: another thread has closed it meanwhile
                raise

    def close(self) -> None:
        """End all requests and free the engine. In the middle of a step of the same thread: at the
        end of that step."""
        self._close_wanted = True
        if not self.is_here:
            self._engine = None  # The engine and its locks belong to the parent process.
        self.tell()

    # -- while it is held --------------------------------------------------------------------------

    def _tell_waiting(self) -> None:
        engine = self._engine
        if engine is None:
            return
        self._tell_departed(engine)
        while self._unpinned:
            with suppress(KeyError):  # unpinned twice
                engine.unpin(self._unpinned[0])
            self._unpinned.popleft()
        if self._close_wanted:
            self._engine = None
            with suppress(Exception):  # errors of requests that this ends
                engine.close()
            self._deliver(engine, engine.take_updates())

    def _tell_departed(self, engine: Engine) -> None:
        while self._departed:
            name, requests = self._departed[0]
            engine.abort_requests(requests) if requests else engine.abort(name)
            for request in requests:
                self._readers.pop(request, None)
                engine.forget(request)
            self._settle(engine)
            # Removed only after that, so that it is repeated after an interrupt.
            self._departed.popleft()

    def _settle(self, engine: Engine) -> None:
        """If no request is left, wait for the batch in flight."""
        if not engine.has_requests:
            with suppress(Exception):  # its requests have ended
                engine.settle()
        self._deliver(engine, engine.take_updates())

    def _step(self, engine: Engine) -> None:
        self._tell_departed(engine)
        if engine.has_work:
            try:
                engine.step()
                self._num_failures = 0
            except BaseException as error:
                # The engine has ended the requests that the error belongs to; their
                # callers raise it.
                if is_interrupt(error) or self._num_failures >= MOST_FAILURES:
                    raise
                self._num_failures += 1
        num_ended = self.num_ended
        self._deliver(engine, engine.take_updates())
        if self.num_ended > num_ended:
            self._num_failures = 0

    def _deliver(self, engine: Engine, updates: Sequence[Request]) -> None:
        for request in updates:
            self.num_ended += request.finished
            reader = self._readers.get(request)
            if reader is None or reader.failure is not None:
                continue
            try:
                reader.chunks.append(reader.cursors[request].advance(engine, request))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                reader.failure = failure(reader.name, error)
                self._departed.append((reader.name, reader.requests))
