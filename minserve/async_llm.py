"""An engine with its own thread, for callers that must not block: servers and widgets.

Callers read chunks from their stream, in plain threads or in asyncio. An error of the engine is
raised in the streams whose requests it ended. The thread is in `frontend.thread` and keeps no
reference to an `AsyncLLM`: one that is dropped without `close` is garbage-collected, and then
its thread ends.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from minserve.build import build_engine, check_engine_arguments, check_predictor
from minserve.clock import Clock
from minserve.config import EngineConfig, Facts, ResolvedConfig
from minserve.engine.pins import PinnedPrefix, check_pinned
from minserve.engine.recovery import EngineError
from minserve.frontend.arguments import check_params, check_process, check_seconds
from minserve.frontend.pins import pin_in_thread
from minserve.frontend.thread.loop import EngineThread
from minserve.frontend.thread.mailbox import Mailbox
from minserve.frontend.thread.stream import Stream, read_to_end
from minserve.frontend.thread.watch import Health
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
"""Longer prompts are tokenized by a worker: they would block the caller's event loop for more
than about 10 ms."""


class AsyncLLM:
    """A model, and an engine in a background thread. A context manager: use with `with`,
    not `async with`."""

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
        """Arguments as for `LLM`; errors of loading are raised here. A step that takes longer than
        `watchdog_s` is reported in the log `minserve`, with its stack, and by `health()`."""
        settings = check_engine_arguments(config, clock, predictor)
        watchdog_s = check_seconds("watchdog_s", watchdog_s, least=0.01)
        loaded = load_model(
            model, settings, progress=progress, facts=Facts(own_predictor=predictor is not None)
        )
        self._model = loaded.description
        self._engine = build_engine(loaded, clock, check_predictor(predictor, loaded))
        self._names = itertools.count()
        self._process = os.getpid()
        self._workers: dict[str, ThreadPoolExecutor] = {}
        self._worker_lock = threading.Lock()
        self._thread = EngineThread(self._engine, watchdog_s)
        self._finalizer = weakref.finalize(self, EngineThread.stop, self._thread)
        self._finalizer.atexit = False  # the thread's own module waits for the thread at exit

    @property
    def config(self) -> ResolvedConfig:
        """The configuration that runs."""
        return self._engine.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self._model.tokenizer

    @property
    def trace(self) -> RunTrace:
        """The trace since the start; safe to read while the engine runs."""
        return self._engine.trace

    @property
    def default_sampling_params(self) -> SamplingParams:
        """The parameters used if a request gives none: the values of generation_config.json."""
        return self._model.default_sampling_params()

    def health(self) -> Health:
        """What the engine's thread is doing, how long its step has taken, and its last error."""
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
        """Send a request; returns at once. If the request is refused, its stream raises the reason.
        If `scheduling.order` is "priority", a request with a smaller `priority` goes first.

        Raises RuntimeError if this AsyncLLM is closed.
        """
        self._check_process()
        name = request_id if request_id is not None else self._new_name()
        mailbox = self._thread.open(str.__str__(name) if isinstance(name, str) else shorten(name))
        try:
            check_request_id(name)
            chosen = self._check_params(params)
            rank, arrival = check_priority(priority), check_arrival(arrival_s)
            if arrival is None and chosen.structured_outputs is not None:
                arrival = self._engine.clock.now()  # compiling its form is part of the TTFT
            given = parse_prompt(prompt, self.config.max_prompt_chars)
            send = functools.partial(self._send, mailbox, given, chosen, arrival, rank)
            if chosen.structured_outputs is not None:
                self._working("grammar").submit(send)
            elif given.text is not None and len(given.text) > LONG_PROMPT_CHARS:
                self._working("tokenizer").submit(send)
            else:
                send()
        except Exception as error:
            self._thread.refuse(mailbox, error)
        except BaseException as error:
            self._thread.refuse(mailbox, error)
            raise
        return Stream(mailbox, self._thread, self)

    def _new_name(self) -> str:
        """A name that no open stream has; a caller may have given one of this form."""
        while self._thread.is_taken(name := f"request-{next(self._names)}"):
            pass
        return name

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
        """Tokenize and compile, in the caller's thread or a worker's, and give the ids to the
        engine's thread."""
        try:
            if params.structured_outputs is not None:
                self._engine.prepare(params)
            ids = self._model.encode(given)
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

    def _working(self, name: str) -> ThreadPoolExecutor:
        """The worker of this name: one thread, so that requests keep their order."""
        with self._worker_lock:
            if name not in self._workers:
                self._workers[name] = ThreadPoolExecutor(1, thread_name_prefix=f"minserve-{name}")
            return self._workers[name]

    def abort(self, request_id: str) -> None:
        """End the requests with this name; does nothing for unknown and finished ones.
        `Stream.abort` ends one stream's request, even if others have the same name."""
        self._thread.abort_name(check_request_id(request_id))

    def pin(
        self, prompt: Prompt, *, cache_salt: str = "", timeout_s: float | None = 60.0
    ) -> PinnedPrefix:
        """As `LLM.pin`; waits until the prefix is computed, at most `timeout_s` for each answer of
        the engine (None: no limit). From asyncio, call it in a thread (`asyncio.to_thread`)."""
        self._check_process()
        seconds = check_seconds("timeout_s", timeout_s)
        salt = check_salt(cache_salt)
        ids = self._model.encode(prompt)

        def compute(params: SamplingParams) -> None:
            read_to_end(self.add(ids, params), seconds)

        return pin_in_thread(self._thread, ids, salt, seconds, compute)

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: allow its pages to be evicted again."""
        check_pinned(pinned).unpin()

    def close(self, timeout_s: float | None = 10.0) -> None:
        """Abort everything, stop the thread, and wait for it at most `timeout_s`. Closing twice
        does no harm."""
        seconds = check_seconds("timeout_s", timeout_s)
        self._thread.stop()
        with self._worker_lock:
            for worker in self._workers.values():
                worker.shutdown(wait=False, cancel_futures=False)
        if self._thread.is_here:
            self._thread.join(seconds)

    def _check_process(self) -> None:
        """Raise RuntimeError in a forked process, which has no engine thread."""
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


__all__ = ["AsyncLLM", "EngineError", "Health", "Stream"]
