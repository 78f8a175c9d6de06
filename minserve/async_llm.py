"""An engine on a thread of its own, for callers that must not block: servers and widgets.

Callers read chunks from their stream, from plain threads or from asyncio; an engine error is raised
to the readers it concerns. What belongs to the thread is in `engine_thread`, which knows nothing of
the objects here: dropped without `close`, they are collected, and the thread with them.
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from minserve.build import build_engine, check_engine_arguments
from minserve.clock import Clock, WallClock
from minserve.config import EngineConfig, ResolvedConfig
from minserve.engine import Engine
from minserve.engine.parts import EngineParts
from minserve.engine.pins import PinnedPrefix, check_pin, check_pinned, pin_computed
from minserve.engine.recovery import EngineError
from minserve.frontend.outputs import StreamChunk, check_params, check_process
from minserve.frontend.thread import EngineThread, Health, Mailbox, check_seconds, late
from minserve.inputs.checks import shorten
from minserve.inputs.prompts import (
    Prompt,
    PromptInput,
    check_arrival,
    check_priority,
    check_request_id,
    check_salt,
    parse_prompt,
)
from minserve.loading import LoadedModel, load_model
from minserve.request import SamplingParams
from minserve.scheduling import LengthPredictor
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace

LONG_PROMPT_CHARS = 16_384
"""Longer prompts are tokenized by a worker: about 10 ms of the caller's event loop."""


class Stream:
    """The chunks of one request, with `for` or with `async for`; several readers share them.

    The last chunk ends it; after that every iteration stops at once. A reader who leaves before
    aborts the request, and so does `asyncio.wait_for` around one chunk when its time is over.
    """

    def __init__(self, mailbox: Mailbox, owner: AsyncLLM) -> None:
        self.request_id = mailbox.request_id
        self._mailbox = mailbox
        # A stream that is read keeps its engine.
        self._owner = owner

    def abort(self) -> None:
        """End this request, and no other of its name; the stream then ends with reason "abort"."""
        self._owner._thread.abort(self._mailbox)

    def __iter__(self) -> Iterator[StreamChunk]:
        self._owner._check_process()
        try:
            while (chunk := self._mailbox.take(block=True)) is not None:
                yield chunk
                self._owner._check_process()
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        self._owner._check_process()
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
                    self._owner._check_process()
        finally:
            self._leave()

    def _leave(self) -> None:
        if not self._mailbox.ended:
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
        watchdog_s: float | None = 120.0,
    ) -> None:
        """As `LLM`; errors of loading are raised here. A step that takes longer than `watchdog_s`
        is reported to the log `minserve`, with where it stands, and by `health()`."""
        settings = check_engine_arguments(config, clock, predictor)
        check_seconds("watchdog_s", watchdog_s, least=0.01)
        self._loaded: LoadedModel = load_model(model, settings, progress=progress)
        self._engine = build_engine(
            self._loaded, clock, EngineParts(predictor=predictor and predictor(self._loaded))
        )
        self._names = itertools.count()
        self._process = os.getpid()
        self._worker: ThreadPoolExecutor | None = None
        self._worker_lock = threading.Lock()
        self._thread = EngineThread(self._engine, watchdog_s)
        self._finalizer = weakref.finalize(self, EngineThread.stop, self._thread)
        self._finalizer.atexit = False  # the thread's own module waits for it there

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

    def health(self) -> Health:
        """What the engine's thread is doing, how long its step has taken, what went wrong last."""
        return self._thread.health()

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
        smaller `priority` goes first where `scheduling.order` is "priority".

        Raises RuntimeError when this AsyncLLM is closed.
        """
        self._check_process()
        name = request_id if request_id is not None else f"request-{next(self._names)}"
        mailbox = self._thread.open(name if isinstance(name, str) else shorten(name))
        try:
            check_request_id(name)
            chosen = self._check_params(params)
            rank, arrival = check_priority(priority), check_arrival(arrival_s)
            given = parse_prompt(prompt, self.config.max_prompt_chars)
            send = functools.partial(self._send, mailbox, given, chosen, arrival, rank)
            if given.text is not None and len(given.text) > LONG_PROMPT_CHARS:
                self._tokenizing().submit(send)
            else:
                send()
        except Exception as error:
            self._thread.refuse(mailbox, error)
        except BaseException as error:
            self._thread.refuse(mailbox, error)
            raise
        return Stream(mailbox, self)

    def _check_params(self, params: SamplingParams | None) -> SamplingParams:
        return check_params(params) or self.default_sampling_params

    def _send(
        self,
        mailbox: Mailbox,
        given: PromptInput,
        params: SamplingParams,
        arrival_s: float | None,
        priority: int,
    ) -> None:
        """Tokenize, in the caller's thread or the worker's, and hand over."""
        try:
            ids = self._loaded.encode(given)
        except Exception as error:
            self._thread.refuse(mailbox, error)
            return
        add = functools.partial(
            self._engine.add,
            mailbox.request_id,
            ids,
            params,
            stream_text=True,
            arrival_s=arrival_s,
            priority=priority,
        )
        self._thread.add(mailbox, add)

    def _tokenizing(self) -> ThreadPoolExecutor:
        with self._worker_lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="minserve-tokenizer")
            return self._worker

    def abort(self, request_id: str) -> None:
        """End the request of this name; unknown and finished ones are left alone. `Stream.abort`
        ends one stream's request, whatever others are called."""
        self._thread.abort_name(check_request_id(request_id))

    def pin(self, prompt: Prompt, *, cache_salt: str = "", timeout_s: float = 60.0) -> PinnedPrefix:
        """As `LLM.pin`; waits until the prefix is computed, at most `timeout_s` for each of the
        engine's answers. From asyncio, call it in a thread (`asyncio.to_thread`)."""
        self._check_process()
        check_seconds("timeout_s", timeout_s)
        salt = check_salt(cache_salt)
        ids = self._loaded.encode(prompt)
        engine, thread = self._engine, self._thread
        thread.ask(lambda: check_pin(engine, ids), timeout_s)

        def pin() -> int | None:
            check_pin(engine, ids)  # again: others may have pinned meanwhile
            return pin_computed(engine, ids, salt)

        once = SamplingParams(max_tokens=1, temperature=0.0, cache_salt=salt)
        # Under load, others may push the pages out between the two commands.
        for _ in range(3):
            handle = thread.ask(pin, timeout_s, undo=_unpin_late(engine))
            if handle is not None:
                size = engine.memory.block_size
                let_go = functools.partial(engine.unpin, handle)
                return PinnedPrefix(
                    len(ids) // size * size,
                    functools.partial(thread.tell, let_go),
                    functools.partial(engine.memory.holds_pin, handle),
                )
            self._read(self.add(ids, once), timeout_s)
        raise EngineError("the prefix was computed three times, and evicted before it was pinned")

    def _read(self, stream: Stream, timeout_s: float) -> None:
        """Read a stream to its end, or abort it."""
        clock = WallClock()
        end_s = clock.now() + timeout_s
        try:
            while stream._mailbox.take(True, max(0.0, end_s - clock.now())) is not None:
                pass
        except queue.Empty:
            stream.abort()
            raise late(timeout_s) from None

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: let its pages be evicted again."""
        check_pinned(pinned).unpin()

    def close(self, timeout_s: float = 10.0) -> None:
        """Abort everything and stop the thread. Closing twice is harmless."""
        check_seconds("timeout_s", timeout_s)
        self._thread.stop()
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=False)
        if self._thread.is_here:
            self._thread.join(timeout_s)

    def _check_process(self) -> None:
        """Raise RuntimeError in a process that was forked: no thread came along."""
        check_process(self._process, "AsyncLLM")

    def __enter__(self) -> AsyncLLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _unpin_late(engine: Engine) -> Callable[[int | None], None]:
    """Takes back a pin whose caller did not wait for it."""

    def undo(handle: int | None) -> None:
        if handle is not None:
            engine.unpin(handle)

    return undo


__all__ = ["AsyncLLM", "EngineError", "Health", "Stream"]
