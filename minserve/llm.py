"""The front door: `LLM(model, config)` with generate, stream, chat and close.

Runs the engine in the caller's thread. Turns strings into token ids and finished requests into
outputs; scheduling, memory and sampling are the engine's. Calls may come from several threads:
`generate` calls take turns, streams run side by side, and whoever asks for a chunk moves all of
them on. For servers and widgets, which must not block, see `AsyncLLM`.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.build import LoadedModel, build_engine, load_model, new_trace
from minserve.clock import Clock
from minserve.config import EngineConfig, ResolvedConfig
from minserve.engine import Engine
from minserve.outputs import (
    StreamChunk,
    StreamCursor,
    check_params,
    check_process,
    failure_of,
    make_output,
    refused_output,
)
from minserve.pins import PinnedPrefix, check_pin, pin_computed
from minserve.prompts import (
    Message,
    Prompt,
    PromptInput,
    check_priority,
    check_prompt_text,
    check_salt,
    parse_conversations,
    parse_each,
    parse_each_conversation,
    parse_prompts,
)
from minserve.recovery import is_interrupt
from minserve.request import InvalidRequestError, Output, Request, SamplingParams
from minserve.scheduling import LengthPredictor
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace

Errors = Literal["raise", "return"]
_Given = PromptInput | InvalidRequestError
"""A prompt, or why it was refused."""


@dataclass
class _Job:
    """One prompt of a call to `generate`."""

    name: str
    text: str | None
    token_ids: list[int]
    params: SamplingParams
    priority: int
    requests: list[Request]
    refused: InvalidRequestError | None = None


class _Reader:
    """A stream's side of the engine: its samples, and the chunks it has not asked for yet."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.cursors = {request: StreamCursor() for request in requests}
        self.chunks: deque[StreamChunk] = deque()

    @property
    def finished(self) -> bool:
        """True when no more chunks will come."""
        return all(request.finished for request in self.requests)


class LLM:
    """A model and an engine. A context manager; closing frees pages and weights."""

    def __init__(
        self,
        model: str | Path,
        config: EngineConfig | None = None,
        *,
        clock: Clock | None = None,
        predictor: Callable[[LoadedModel], LengthPredictor] | None = None,
        progress: bool = True,
    ) -> None:
        """Load `model`: "zoo/NAME", a Hugging Face directory, or a name on the hub.

        Raises ConfigError for a configuration that cannot work with this model and device, and a
        sentence for a directory that cannot be loaded. `predictor` makes what guesses the lengths
        of answers for scheduling.order="sjf", such as `minserve.zoo.lengths.LengthProbe`.
        `progress` shows loading bars on stderr.
        """
        self._loaded = load_model(model, config or EngineConfig(), progress=progress)
        self._engine: Engine | None = build_engine(
            self._loaded, clock, predictor=predictor(self._loaded) if predictor else None
        )
        self._names = itertools.count()
        self._process = os.getpid()
        self._turn = threading.RLock()
        """Held by the call that fills the engine: generate, pin."""
        self._lock = threading.Lock()
        """Held while the engine is touched, never while a caller has the word."""
        self._readers: dict[Request, _Reader] = {}
        self._departed: deque[tuple[str, Sequence[Request]]] = deque()
        """Requests that are wanted no more: told to the engine as soon as it is free."""

    @property
    def engine(self) -> Engine:
        """The engine. Raises RuntimeError after `close()`."""
        if self._engine is None:
            raise RuntimeError("this LLM is closed; make a new one")
        return self._engine

    @property
    def config(self) -> ResolvedConfig:
        """The effective configuration, with notes on what was chosen."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, when it has one."""
        return self._loaded.tokenizer

    @property
    def trace(self) -> RunTrace:
        """The trace of the last run (`generate`, `chat` or `stream`)."""
        return self.engine.trace

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: generation_config.json's values."""
        return self._loaded.default_sampling_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        priority: int | Sequence[int] = 0,
        progress: bool = True,
        use_tqdm: bool | None = None,
        errors: Errors = "raise",
    ) -> list[Output]:
        """Complete prompts, one or many (strings, token ids, vLLM's dictionaries); outputs in their
        order.

        `params` is one for all prompts or one each, and so is `priority`, of which the smaller goes
        first where `scheduling.order` is "priority". `progress` shows a bar on stderr when it takes
        more than two seconds. `sampling_params` and `use_tqdm` are vLLM's names for two of these.

        With `errors="raise"` every prompt is checked before anything runs: InvalidRequestError
        names the first that cannot be served; and the first request that fails ends the call with
        what it failed with. With "return" such a request is an Output with finish reason "error"
        and a sentence, and the others are completed.
        """
        params = self._check_call(params, sampling_params, errors)
        most = self.config.max_prompt_chars
        given: Sequence[_Given]
        given = parse_prompts(prompts, most) if errors == "raise" else parse_each(prompts, most)
        with self._turn:
            jobs = self._jobs(given, params, priority, errors)
            return self._complete(jobs, progress if use_tqdm is None else use_tqdm, errors)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Complete one prompt, a chunk per sample and step, from any thread; stopping the iteration
        aborts it. What is wrong with the request is raised here, what fails later in the iteration.
        """
        check_process(self._process, "LLM")
        one = check_params(params) or self.default_sampling_params
        ids = self.encode(prompt)
        return self._chunks(ids, one)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        sampling_params: SamplingParams | None = None,
        priority: int = 0,
        progress: bool = True,
        use_tqdm: bool | None = None,
        errors: Errors = "raise",
    ) -> Output: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        priority: int | Sequence[int] = 0,
        progress: bool = True,
        use_tqdm: bool | None = None,
        errors: Errors = "raise",
    ) -> list[Output]: ...
    def chat(
        self,
        messages: Any,
        params: Any = None,
        *,
        sampling_params: Any = None,
        priority: int | Sequence[int] = 0,
        progress: bool = True,
        use_tqdm: bool | None = None,
        errors: Errors = "raise",
    ) -> Output | list[Output]:
        """Answer a conversation, `[{"role": "user", "content": "..."}]`, by the model's template;
        or a list of conversations, and then the answers are a list too.

        Options are those of `generate`. Raises InvalidRequestError when the model has no tokenizer
        or no chat template.
        """
        params = self._check_call(params, sampling_params, errors)
        most = self.config.max_prompt_chars
        conversations: Sequence[list[Message] | InvalidRequestError]
        if errors == "raise":
            conversations, many = parse_conversations(messages, most)
        else:
            conversations, many = parse_each_conversation(messages, most)
        given = [self._rendered(conversation, errors) for conversation in conversations]
        with self._turn:
            jobs = self._jobs(given, params, priority, errors)
            outputs = self._complete(jobs, progress if use_tqdm is None else use_tqdm, errors)
        return outputs if many else outputs[0]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids that `chat` sends for a conversation."""
        (conversation,), _ = parse_conversations([messages], self.config.max_prompt_chars)
        return self._chat_ids(conversation)

    def _rendered(
        self, conversation: list[Message] | InvalidRequestError, errors: Errors
    ) -> _Given:
        if isinstance(conversation, InvalidRequestError):
            return conversation
        try:
            return PromptInput(None, self._chat_ids(conversation))
        except InvalidRequestError as error:
            if errors == "raise":
                raise
            return error

    def _chat_ids(self, conversation: Sequence[Message]) -> list[int]:
        tokenizer = self._loaded.need_tokenizer("a conversation")
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        check_prompt_text(text, self.config.max_prompt_chars, "the conversation as a prompt")
        # The template writes its own special tokens.
        return tokenizer.encode(text, add_special_tokens=False)

    def pin(self, prompt: Prompt, *, cache_salt: str = "") -> PinnedPrefix:
        """Keep a prefix (a system prompt, a document) in the prefix cache until it is unpinned.

        Computes it first where it is not computed yet: a run of its own, which `trace` then shows.
        Whole pages are pinned. `cache_salt` is that of the requests which are to share it. A
        context manager: `with llm.pin(document): ...`. Raises ConfigError without a prefix cache,
        InvalidRequestError for a prefix shorter than a page or too long for the pool.
        """
        ids, salt = self.encode(prompt), check_salt(cache_salt)
        engine = self.engine
        with self._turn:
            with self._lock:
                check_pin(engine, ids)
                handle = pin_computed(engine, ids, salt)
            if handle is None:
                once = SamplingParams(max_tokens=1, temperature=0.0, cache_salt=salt)
                self.generate([ids], once, progress=False)
                with self._lock:
                    handle = pin_computed(engine, ids, salt)
        if handle is None:
            raise RuntimeError("the prefix was computed and is not in the cache")
        size = engine.memory.block_size
        return PinnedPrefix(
            len(ids) // size * size,
            functools.partial(self._unpin, handle),
            functools.partial(engine.memory.holds_pin, handle),
        )

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: let its pages be evicted again."""
        pinned.unpin()

    def _unpin(self, handle: int) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.memory.unpin(handle)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids are taken as they are. Raises InvalidRequestError."""
        return self._loaded.encode(prompt)

    def close(self) -> None:
        """Abort what runs; free pages, files and weights. Closing twice is harmless."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._deliver(self._engine)
            self._engine = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- generate ----------------------------------------------------------------------------------

    def _check_call(self, params: Any, sampling_params: Any, errors: Errors) -> Any:
        """What generate and chat have in common; the parameters under their one name."""
        check_process(self._process, "LLM")
        if errors not in ("raise", "return"):
            raise InvalidRequestError(f"errors={errors!r}: expected 'raise' or 'return'")
        if params is not None and sampling_params is not None:
            raise InvalidRequestError("params and sampling_params are one thing: give one")
        return params if sampling_params is None else sampling_params

    def _jobs(
        self,
        given: Sequence[_Given],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
        errors: Errors,
    ) -> list[_Job]:
        """Everything checked that can be checked without the engine."""
        each = self._params_for(params, len(given))
        ranks = _priorities(priority, len(given))
        jobs = []
        for prompt, one, rank in zip(given, each, ranks, strict=True):
            job = _Job(f"request-{next(self._names)}", None, [], one, rank, [])
            jobs.append(job)
            if isinstance(prompt, InvalidRequestError):
                job.refused = prompt
                continue
            job.text = prompt.text
            try:
                job.token_ids = self._loaded.encode(prompt)
            except InvalidRequestError as error:
                if errors == "raise":
                    raise
                job.refused = error
        return jobs

    def _params_for(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            params = self.default_sampling_params
        if isinstance(params, SamplingParams):
            return [params] * count
        each = list(params) if isinstance(params, list | tuple) else [params]
        chosen = [check_params(one) or self.default_sampling_params for one in each]
        if len(chosen) != count:
            raise InvalidRequestError(
                f"{len(chosen)} SamplingParams for {count} prompts: give one, or one each"
            )
        return chosen

    def _complete(self, jobs: Sequence[_Job], progress: bool, errors: Errors) -> list[Output]:
        try:
            with self._lock:
                engine = self._start_run()
                self._end_orphans(engine)
                for job in jobs:
                    if job.refused is None:
                        self._add(engine, job, errors)
            requests = [request for job in jobs for request in job.requests]
            self._run(engine, requests, progress, stop_on_error=errors == "raise")
            with self._lock:
                return [self._output(engine, job, errors) for job in jobs]
        finally:
            # After an interruption or an error nothing of this call stays behind.
            self._departed.extend((job.name, job.requests) for job in jobs)
            self._tell_soon()

    def _add(self, engine: Engine, job: _Job, errors: Errors) -> None:
        try:
            job.requests = engine.add(job.name, job.token_ids, job.params, priority=job.priority)
        except InvalidRequestError as error:
            if errors == "raise":
                raise
            job.refused = error

    def _run(
        self, engine: Engine, requests: Sequence[Request], progress: bool, stop_on_error: bool
    ) -> None:
        """Step until these requests have ended."""
        left = list(requests)
        with tqdm(
            total=len(left), desc="requests", unit="req", delay=2, disable=not progress
        ) as bar:
            while left:
                self._advance(engine)
                if stop_on_error and (failure := failure_of(left)) is not None:
                    raise failure
                before = len(left)
                left = [request for request in left if not request.finished]
                if len(left) < before:
                    bar.update(before - len(left))

    def _output(self, engine: Engine, job: _Job, errors: Errors) -> Output:
        if job.refused is None:
            return make_output(engine, job.requests, job.text)
        now_s, count = engine.clock.now(), job.params.n
        return refused_output(job.name, job.text, job.refused, now_s, count)

    # -- the engine, shared ------------------------------------------------------------------------

    def _start_run(self) -> Engine:
        """The engine, with a fresh trace unless something runs in it already."""
        engine = self.engine
        self._tell_departed(engine)
        if not engine.has_work:
            engine.trace = new_trace(self._loaded.name, engine.config)
        return engine

    def _advance(self, engine: Engine) -> None:
        """One step for everything that runs, and every reader its chunks."""
        check_process(self._process, "LLM")
        with self._lock:
            if self._engine is not engine:
                return  # Closed meanwhile: everything has ended.
            self._tell_departed(engine)
            if engine.has_work:
                try:
                    engine.step()
                except BaseException as error:
                    # The engine has ended the requests it belongs to: their callers raise it.
                    if is_interrupt(error):
                        raise
            self._deliver(engine)

    def _deliver(self, engine: Engine) -> None:
        for request in engine.take_updates():
            reader = self._readers.get(request)
            if reader is not None:
                reader.chunks.append(reader.cursors[request].advance(engine, request))

    def _chunks(self, ids: list[int], params: SamplingParams) -> Iterator[StreamChunk]:
        name, requests = f"request-{next(self._names)}", []
        try:
            with self._lock:
                engine = self._start_run()
                requests = engine.add(name, ids, params, stream_text=True)
                reader = _Reader(requests)
                self._readers.update(dict.fromkeys(requests, reader))
            while True:
                while reader.chunks:
                    yield reader.chunks.popleft()
                if reader.finished:
                    break
                self._advance(engine)
            with self._lock:
                # What an interrupted call of another thread did not deliver.
                left = [r for r, cursor in reader.cursors.items() if not cursor.ended]
                last = [reader.cursors[request].advance(engine, request) for request in left]
            yield from last
            if (failure := failure_of(requests)) is not None:
                raise failure
        finally:
            self._departed.append((name, requests))
            self._tell_soon()

    def _tell_soon(self) -> None:
        """Tell the engine who left, now or when it is free: a stream may be dropped by the garbage
        collector in the midst of a step."""
        # In a forked child nothing waits for the engine, and its locks may be held for ever.
        if os.getpid() == self._process and self._lock.acquire(blocking=False):
            try:
                if self._engine is not None:
                    self._tell_departed(self._engine)
            finally:
                self._lock.release()

    def _tell_departed(self, engine: Engine) -> None:
        while self._departed:
            name, requests = self._departed.popleft()
            engine.abort(name)
            for request in requests:
                self._readers.pop(request, None)
                engine.forget(request)
            if not engine.has_requests:
                engine.settle()
            self._deliver(engine)

    def _end_orphans(self, engine: Engine) -> None:
        """End what an interrupted call left behind: only streams may be under way now."""
        orphans = [request for request in engine.live_requests() if request not in self._readers]
        if orphans:
            engine.abort_requests(orphans)
            for request in orphans:
                engine.forget(request)


def _priorities(priority: int | Sequence[int], count: int) -> list[int]:
    given = priority if isinstance(priority, list | tuple) else [priority] * count
    ranks = [check_priority(rank) for rank in given]
    if len(ranks) != count:
        raise InvalidRequestError(
            f"{len(ranks)} priorities for {count} prompts: give one, or one each"
        )
    return ranks
