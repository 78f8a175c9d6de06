"""An engine on a thread of its own, for callers that must not block: servers and widgets.

One background thread owns the engine and is the only one to touch it; callers put commands in a
queue and read chunks from their stream, from plain threads or from asyncio. An engine error ends
the streams it concerns and is raised to whoever reads them.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from minserve.build import LoadedModel, Prompt, build_engine, load_model
from minserve.clock import Clock
from minserve.config import EngineConfig, ResolvedConfig
from minserve.engine import Engine
from minserve.llm import StreamChunk, StreamCursor
from minserve.pins import PinnedPrefix, check_pin, pin_computed
from minserve.request import Request, SamplingParams
from minserve.scheduling import LengthPredictor
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace

Answer = TypeVar("Answer")


class EngineError(RuntimeError):
    """The engine failed while it worked on a request; the cause is chained."""


class Stream:
    """The chunks of one request. Iterate it once, with `for` or with `async for`."""

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._items: queue.SimpleQueue[StreamChunk | BaseException | None] = queue.SimpleQueue()
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._lock = threading.Lock()
        self._ended = False

    def abort(self) -> None:
        """Ask the engine to end this request; the stream then ends with reason "abort"."""
        self._abort(self.request_id)

    def put(self, item: StreamChunk | BaseException | None) -> None:
        """Engine side: a chunk, an error, or None for the end."""
        self._items.put(item)
        with self._lock:
            if self._listener is not None:
                loop, event = self._listener
                # The reader's loop may be gone, with its reader.
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def __iter__(self) -> Iterator[StreamChunk]:
        try:
            while (item := self._items.get()) is not None:
                yield self._open(item)
            self._ended = True
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        event = asyncio.Event()
        with self._lock:
            self._listener = (asyncio.get_running_loop(), event)
        try:
            while True:
                event.clear()
                try:
                    item = self._items.get_nowait()
                except queue.Empty:
                    await event.wait()
                    continue
                if item is None:
                    self._ended = True
                    return
                yield self._open(item)
        finally:
            self._leave()

    def _open(self, item: StreamChunk | BaseException) -> StreamChunk:
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        return item

    def _leave(self) -> None:
        """A reader who goes before the end takes the request along."""
        if not self._ended:
            self.abort()


class AsyncLLM:
    """A model and an engine behind a background thread. A context manager."""

    def __init__(
        self,
        model: str | Path,
        config: EngineConfig | None = None,
        *,
        clock: Clock | None = None,
        predictor: Callable[[LoadedModel], LengthPredictor] | None = None,
        progress: bool = True,
    ) -> None:
        """As `LLM`; errors of loading are raised here."""
        self._loaded: LoadedModel = load_model(model, config or EngineConfig(), progress=progress)
        self._engine = build_engine(
            self._loaded, clock, predictor=predictor(self._loaded) if predictor else None
        )
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._cursors: dict[Request, StreamCursor] = {}
        self._names = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="minserve-engine", daemon=True)
        self._thread.start()

    @property
    def config(self) -> ResolvedConfig:
        """The effective configuration."""
        return self._engine.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, when it has one."""
        return self._loaded.tokenizer

    @property
    def trace(self) -> RunTrace:
        """The trace since the start; safe to read while the engine runs."""
        return self._engine.trace

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: generation_config.json's values."""
        return self._loaded.default_sampling_params()

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        arrival_s: float | None = None,
        priority: int = 0,
    ) -> Stream:
        """Send a request; returns at once. What is wrong with it is raised by the stream. The
        smaller `priority` goes first where `scheduling.order` is "priority"."""
        if self._closed:
            raise RuntimeError("this AsyncLLM is closed; make a new one")
        name = request_id if request_id is not None else f"request-{next(self._names)}"
        stream = Stream(name, self.abort)
        chosen = params or self.default_sampling_params
        self._commands.put(lambda: self._add(stream, prompt, chosen, arrival_s, priority))
        return stream

    def abort(self, request_id: str) -> None:
        """End a request; unknown and finished ones are left alone."""
        self._commands.put(lambda: self._abort(request_id))

    def pin(self, prompt: Prompt, *, cache_salt: str = "", timeout_s: float = 60.0) -> PinnedPrefix:
        """As `LLM.pin`; waits until the prefix is computed, at most `timeout_s` for each of the
        engine's answers. From asyncio, call it in a thread (`asyncio.to_thread`)."""
        ids = self._loaded.encode(prompt)
        self._ask(lambda: check_pin(self._engine, ids), timeout_s)
        once = SamplingParams(max_tokens=1, temperature=0.0, cache_salt=cache_salt)
        # Under load, others may push the pages out between the two commands.
        for _ in range(3):
            handle = self._ask(lambda: self._pin(ids, cache_salt), timeout_s)
            if handle is not None:
                size = self._engine.memory.block_size
                return PinnedPrefix(len(ids) // size * size, functools.partial(self._unpin, handle))
            for _ in self.add(ids, once):
                pass
        raise EngineError("the prefix was computed three times, and evicted before it was pinned")

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: let its pages be evicted again."""
        pinned.unpin()

    def _pin(self, ids: Sequence[int], cache_salt: str) -> int | None:
        check_pin(self._engine, ids)  # again: others may have pinned meanwhile
        return pin_computed(self._engine, ids, cache_salt)

    def _unpin(self, handle: int) -> None:
        self._commands.put(lambda: self._engine.memory.unpin(handle))

    def _ask(self, what: Callable[[], Answer], timeout_s: float) -> Answer:
        """Have the engine's thread do something, and wait for its answer."""
        if self._closed:
            raise RuntimeError("this AsyncLLM is closed; make a new one")
        answer: Future[Answer] = Future()

        def command() -> None:
            try:
                answer.set_result(what())
            except Exception as error:
                answer.set_exception(error)

        self._commands.put(command)
        return answer.result(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Abort everything and stop the thread. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._commands.put(None)
            self._thread.join(timeout_s)

    def __enter__(self) -> AsyncLLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        """The background thread: commands, a step, chunks; and again."""
        engine = self._engine
        while self._obey(wait=not engine.has_work):
            if not engine.has_work:
                continue
            try:
                engine.step()
            except Exception as error:
                self._fail(error)
            self._deliver(engine.take_updates())
        engine.close()
        self._deliver(engine.take_updates())

    def _obey(self, wait: bool) -> bool:
        """Run the commands that have come; False when told to stop."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _add(
        self,
        stream: Stream,
        prompt: Prompt,
        params: SamplingParams,
        arrival_s: float | None,
        priority: int,
    ) -> None:
        try:
            ids = self._loaded.encode(prompt)
            requests = self._engine.add(
                stream.request_id,
                ids,
                params,
                stream_text=True,
                arrival_s=arrival_s,
                priority=priority,
            )
        except Exception as error:
            stream.put(error)
            return
        self._streams[stream.request_id] = stream
        for request in requests:
            self._cursors[request] = StreamCursor()

    def _abort(self, request_id: str) -> None:
        if self._engine.abort(request_id):
            self._deliver(self._engine.take_updates())

    def _fail(self, error: Exception) -> None:
        """The engine ended the requests of the failed batch; their readers get the cause."""
        for request in self._engine.take_updates():
            self._cursors.pop(request, None)
            self._engine.forget(request)
            stream = self._streams.pop(request.request_id, None)
            if stream is not None:
                self._engine.abort(request.request_id)
                failure = EngineError(f"{request.request_id}: the engine failed: {error}")
                failure.__cause__ = error
                stream.put(failure)

    def _deliver(self, updates: Sequence[Request]) -> None:
        for request in updates:
            cursor = self._cursors.get(request)
            stream = self._streams.get(request.request_id)
            if cursor is None or stream is None:
                continue
            stream.put(cursor.advance(self._engine, request))
            if request.finished:
                del self._cursors[request]
                self._engine.forget(request)
                if not any(r.request_id == request.request_id for r in self._cursors):
                    del self._streams[request.request_id]
                    stream.put(None)


__all__ = ["AsyncLLM", "Engine", "EngineError", "Stream"]
