"""One engine that several callers move on in turns: who waits for tokens steps it for all.

Held only while the engine is touched, never while a caller has the word. What belongs to one caller
reaches no other: an error is raised by the caller whose request it ended. Callers may leave at any
time, also by the garbage collector or a signal in the midst of a step of the same thread; then the
engine is told as soon as it is free.
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
    "this LLM was called by a signal handler or a finalizer in the midst of a step of the same "
    "thread: set a flag there, and call it when the step has ended (close() and unpin() are safe)"
)
MOST_FAILURES = 5
"""Steps in a row that fail without ending a request, after which the error is raised."""


class Reader:
    """A stream's side of the engine: its samples, and the chunks it has not asked for yet."""

    def __init__(self, name: str, requests: Sequence[Request]) -> None:
        self.name = name
        self.requests = requests
        self.cursors = {request: StreamCursor() for request in requests}
        self.chunks: deque[StreamChunk] = deque()
        self.failure: EngineError | None = None
        """Why nothing more can be told of it."""

    def take(self) -> list[StreamChunk]:
        """The chunks that have come. Called while the engine is held: others deliver to it."""
        chunks = list(self.chunks)
        self.chunks.clear()
        return chunks

    @property
    def finished(self) -> bool:
        """True when no more chunks will come."""
        return self.failure is not None or all(request.finished for request in self.requests)


class EngineShare:
    """See the module. Methods that take an `engine` are called while `hold` is entered."""

    def __init__(self, engine: Engine, fresh_trace: Callable[[], RunTrace]) -> None:
        self._engine: Engine | None = engine
        self._fresh_trace = fresh_trace
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._readers: dict[Request, Reader] = {}
        self._departed: deque[tuple[str, Sequence[Request]]] = deque()
        """Requests that are wanted no more."""
        self._unpinned: deque[int] = deque()
        self._close_wanted = False
        self._num_failures = 0
        self.num_ended = 0
        """Requests that have ended so far: where it stands still, none has ended since."""

    @property
    def engine(self) -> Engine:
        """The engine. Raises RuntimeError after `close()`."""
        if self._engine is None:
            raise RuntimeError(CLOSED)
        return self._engine

    @property
    def is_idle(self) -> bool:
        """True when no request is live."""
        engine = self._engine
        return engine is None or not engine.has_requests

    @contextmanager
    def hold(self) -> Iterator[Engine]:
        """The engine, for this thread alone. Raises RuntimeError when it is closed, after a fork,
        and where this very thread holds it already."""
        check_process(self._process, "LLM")
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
        """A fresh trace, unless something runs already. `alone`: only streams may be under way, so
        what else runs was left behind by an interrupted call, and ends."""
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
        """One step for everything that runs, and every reader its chunks."""
        if self._engine is None:
            return  # Closed by another thread: everything has ended.
        with self.hold() as engine:
            self._step(engine)

    def open(self, name: str, ids: list[int], params: SamplingParams) -> Reader:
        """A stream over a new request."""
        with self.hold() as engine:
            self.start_run(engine, alone=False)
            reader = Reader(name, engine.add(name, ids, params, stream_text=True))
            self._readers.update(dict.fromkeys(reader.requests, reader))
            return reader

    def next_chunks(self, reader: Reader) -> list[StreamChunk]:
        """What the reader has not been given, after a step where there is nothing; empty at the
        end. Raises what its request failed with, then."""
        while True:
            if self._engine is None:
                chunks = reader.take()
            else:
                with self.hold() as engine:
                    if not reader.chunks and not reader.finished:
                        self._step(engine)
                    if reader.finished:
                        # What an interrupted call of another thread did not deliver.
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
        """Note that a caller wants its requests no more. Safe at any moment, in any thread."""
        self._departed.append((name, requests))

    def unpin(self, handle: int) -> None:
        """Let a pin's pages be evicted again, now or when the engine is free."""
        self._unpinned.append(handle)
        self.tell()

    def tell(self) -> None:
        """Tell the engine who has left, unless this thread is in the midst of a step: then it is
        told at the end of it."""
        if self._engine is None or os.getpid() != self._process or self._is_held_here:
            return
        try:
            with self.hold():
                pass
        except RuntimeError:
            if self._engine is not None:  # or another thread has closed it meanwhile
                raise

    def close(self) -> None:
        """End everything. Called in the midst of a step of the same thread: at the end of it."""
        self._close_wanted = True
        if os.getpid() != self._process:
            self._engine = None  # The engine, and its locks, are the parent's.
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
            with suppress(Exception):  # of requests that have ended by it
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
            # Only now: what an interrupt cuts short is done again.
            self._departed.popleft()

    def _settle(self, engine: Engine) -> None:
        """Wait for what is in flight where no request is left."""
        if not engine.has_requests:
            with suppress(Exception):  # nobody is left whom it concerns
                engine.settle()
        self._deliver(engine, engine.take_updates())

    def _step(self, engine: Engine) -> None:
        self._tell_departed(engine)
        if engine.has_work:
            try:
                engine.step()
                self._num_failures = 0
            except BaseException as error:
                # The engine has ended the requests it belongs to: their callers raise it.
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
