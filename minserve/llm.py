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
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.build import build_engine, check_engine_arguments, new_trace
from minserve.clock import Clock
from minserve.config import EngineConfig, ResolvedConfig
from minserve.engine import Engine
from minserve.engine.parts import EngineParts
from minserve.engine.pins import PinnedPrefix, check_pin, check_pinned, pin_computed
from minserve.frontend.outputs import (
    StreamChunk,
    check_params,
    check_process,
    failure_of,
    make_output,
    refused_output,
)
from minserve.frontend.share import REENTERED, EngineShare
from minserve.inputs.checks import MOST_ITEMS, shorten
from minserve.inputs.prompts import (
    Message,
    Prompt,
    PromptInput,
    as_list,
    check_priority,
    check_prompt_text,
    check_salt,
    parse_conversations,
    parse_each,
    parse_each_conversation,
    parse_prompts,
)
from minserve.loading import LoadedModel, load_model
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


class ChunkStream(Iterator[StreamChunk]):
    """The chunks of one streamed request. Threads that read one stream take turns; leaving early,
    or `close()`, aborts it."""

    def __init__(self, chunks: Generator[StreamChunk, None, None], share: EngineShare) -> None:
        self._chunks = chunks
        self._share = share
        self._turn = threading.RLock()
        self._running = False

    def __next__(self) -> StreamChunk:
        with self._turn:
            if self._running:
                raise RuntimeError(REENTERED)
            self._running = True
            try:
                return next(self._chunks)
            except BaseException:
                self._share.tell()
                raise
            finally:
                self._running = False

    def close(self) -> None:
        """Abort the request, if it has not ended. A second time is harmless."""
        with self._turn:
            self._chunks.close()
        self._share.tell()


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
        settings = check_engine_arguments(config, clock, predictor)
        self._loaded = load_model(model, settings, progress=progress)
        engine = build_engine(
            self._loaded, clock, EngineParts(predictor=predictor and predictor(self._loaded))
        )
        self._share = EngineShare(engine, lambda: new_trace(self._loaded.name, engine.config))
        self._names = itertools.count()
        self._process = os.getpid()
        self._turn = threading.RLock()
        """Held by the call that fills the engine: generate, chat, pin."""

    @property
    def engine(self) -> Engine:
        """The engine. Raises RuntimeError after `close()`."""
        return self._share.engine

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
        name = f"request-{next(self._names)}"
        self.engine.check(name, ids, one)
        return ChunkStream(self._chunks(name, ids, one), self._share)

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
        with self._turn:
            with self._share.hold() as engine:
                check_pin(engine, ids)
                handle = pin_computed(engine, ids, salt)
            if handle is None:
                once = SamplingParams(max_tokens=1, temperature=0.0, cache_salt=salt)
                self.generate([ids], once, progress=False)
                with self._share.hold():
                    handle = pin_computed(engine, ids, salt)
        if handle is None:
            raise RuntimeError("the prefix was computed and is not in the cache")
        size = engine.memory.block_size
        return PinnedPrefix(
            len(ids) // size * size,
            functools.partial(self._share.unpin, handle),
            functools.partial(engine.memory.holds_pin, handle),
        )

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: let its pages be evicted again."""
        check_pinned(pinned).unpin()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids are taken as they are. Raises InvalidRequestError."""
        return self._loaded.encode(prompt)

    def close(self) -> None:
        """Abort what runs; free pages, files and weights. Closing twice is harmless."""
        self._share.close()

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
        if type(errors) is not str or errors not in ("raise", "return"):
            raise InvalidRequestError(f"errors={shorten(errors)}: expected 'raise' or 'return'")
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
        if params is None or issubclass(type(params), SamplingParams):
            one: Any = params
            return [check_params(one) or self.default_sampling_params] * count
        each = as_list(params, "params", "SamplingParams, or a list of them", MOST_ITEMS)
        chosen = [check_params(one) or self.default_sampling_params for one in each]
        if len(chosen) != count:
            raise InvalidRequestError(
                f"{len(chosen)} SamplingParams for {count} prompts: give one, or one each"
            )
        return chosen

    def _complete(self, jobs: Sequence[_Job], progress: bool, errors: Errors) -> list[Output]:
        share, stops = self._share, errors == "raise"
        try:
            with share.hold() as engine:
                share.start_run(engine, alone=True)
                for job in jobs:
                    if job.refused is None:
                        self._add(engine, job, errors)
            requests = [request for job in jobs for request in job.requests]
            self._run(requests, progress, stops)
            with share.hold() as engine:
                outputs = [self._output(engine, job) for job in jobs]
            if stops and (told := failure_of(requests)) is not None:
                raise told
            return outputs
        finally:
            # After an interruption or an error nothing of this call stays behind.
            for job in jobs:
                share.leave(job.name, job.requests)
            share.tell()

    def _add(self, engine: Engine, job: _Job, errors: Errors) -> None:
        try:
            job.requests = engine.add(job.name, job.token_ids, job.params, priority=job.priority)
        except InvalidRequestError as error:
            if errors == "raise":
                raise
            job.refused = error

    def _run(self, requests: Sequence[Request], progress: bool, stops: bool) -> None:
        """Step until these requests have ended; `stops`: or until the first fails."""
        left, share = list(requests), self._share
        num_ended = -1
        with tqdm(
            total=len(left), desc="requests", unit="req", delay=2, disable=not progress
        ) as bar:
            while left:
                share.advance()
                if share.num_ended == num_ended and not share.is_idle:
                    continue  # Nothing has ended, so there is nothing to look for.
                num_ended = share.num_ended
                if stops and (told := failure_of(left)) is not None:
                    raise told
                before = len(left)
                left = [request for request in left if not request.finished]
                bar.update(before - len(left))

    def _output(self, engine: Engine, job: _Job) -> Output:
        if job.refused is None:
            return make_output(engine, job.requests, job.text)
        now_s, count = engine.clock.now(), job.params.n
        return refused_output(job.name, job.text, job.refused, now_s, count)

    def _chunks(
        self, name: str, ids: list[int], params: SamplingParams
    ) -> Generator[StreamChunk, None, None]:
        share = self._share
        requests: tuple[Request, ...] = ()
        try:
            reader = share.open(name, ids, params)
            requests = tuple(reader.requests)
            while chunks := share.next_chunks(reader):
                yield from chunks
        finally:
            # The garbage collector may be here in the midst of a step, so this only leaves word.
            share.leave(name, requests)


def _priorities(priority: int | Sequence[int], count: int) -> list[int]:
    if not isinstance(priority, list | tuple):
        return [check_priority(priority)] * count
    ranks = [check_priority(rank) for rank in as_list(priority, "priority", "numbers", MOST_ITEMS)]
    if len(ranks) != count:
        raise InvalidRequestError(
            f"{len(ranks)} priorities for {count} prompts: give one, or one each"
        )
    return ranks
