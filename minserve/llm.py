"""The front door: `LLM(model, config)` with generate, stream, chat and close.

Runs the engine in the caller's thread. Turns strings into token ids and finished requests into
outputs; scheduling, memory and sampling are the engine's. For servers and widgets, which must not
block, see `AsyncLLM`.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.build import LoadedModel, Prompt, build_engine, load_model, new_trace
from minserve.clock import Clock
from minserve.config import EngineConfig, ResolvedConfig
from minserve.engine import Engine
from minserve.pins import PinnedPrefix, check_pin, pin_computed
from minserve.request import (
    FinishReason,
    InvalidRequestError,
    Output,
    Request,
    RequestMetrics,
    Sample,
    SamplingParams,
)
from minserve.scheduling import LengthPredictor
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace

Message = Mapping[str, Any]


@dataclass(frozen=True)
class StreamChunk:
    """What a streamed sample gained in one step."""

    request_id: str
    index: int
    """Which of the request's n samples."""
    text: str
    """New text; may be empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...]
    """New tokens."""
    finish_reason: FinishReason | None
    metrics: RequestMetrics
    error: str | None = None


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
        self._lock = threading.RLock()

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
        priority: int | Sequence[int] = 0,
        progress: bool = True,
    ) -> list[Output]:
        """Complete prompts (strings or lists of token ids, one or many); outputs in their order.

        `params` is one for all prompts or one each, and so is `priority`, of which the smaller goes
        first where `scheduling.order` is "priority". Every prompt is checked before anything runs:
        InvalidRequestError names the first that cannot be served. `progress` shows a bar on stderr
        when it takes more than two seconds.
        """
        texts = _as_list(prompts)
        each = self._params_for(params, len(texts))
        ranks = [priority] * len(texts) if isinstance(priority, int) else list(priority)
        if len(ranks) != len(texts):
            raise InvalidRequestError(
                f"{len(ranks)} priorities for {len(texts)} prompts: give one, or one each"
            )
        ids = [self.encode(prompt) for prompt in texts]
        with self._lock:
            engine = self._start_run()
            names = [f"request-{next(self._names)}" for _ in texts]
            groups: list[list[Request]] = []
            try:
                for name, prompt, one, rank in zip(names, ids, each, ranks, strict=True):
                    groups.append(engine.add(name, prompt, one, priority=rank))
                self._run(engine, sum(len(group) for group in groups), progress)
            finally:
                # After an interruption or an error nothing of this call stays behind.
                for name in names:
                    engine.abort(name)
                engine.settle()
                engine.take_updates()
            outputs = [
                make_output(engine, group, text if isinstance(text, str) else None)
                for group, text in zip(groups, texts, strict=True)
            ]
            for request in itertools.chain.from_iterable(groups):
                engine.forget(request)
            return outputs

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Complete one prompt, a chunk per sample and step; stopping the iteration aborts it."""
        one = params or self.default_sampling_params
        ids = self.encode(prompt)
        with self._lock:
            engine = self._start_run()
            name = f"request-{next(self._names)}"
            cursors = {
                request: StreamCursor() for request in engine.add(name, ids, one, stream_text=True)
            }
            try:
                while engine.has_work:
                    engine.step()
                    for request in engine.take_updates():
                        yield cursors[request].advance(engine, request)
            finally:
                engine.abort(name)
                engine.settle()
                engine.take_updates()
                for request in cursors:
                    engine.forget(request)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        progress: bool = True,
    ) -> Output:
        """Answer a conversation: `[{"role": "user", "content": "..."}]`, by the model's template.

        Raises InvalidRequestError when the model has no tokenizer or no chat template.
        """
        return self.generate([self.chat_prompt(messages)], params, progress=progress)[0]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids that `chat` sends for a conversation."""
        tokenizer = self._loaded.need_tokenizer("a conversation")
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        # The template writes its own special tokens.
        return tokenizer.encode(text, add_special_tokens=False)

    def pin(self, prompt: Prompt, *, cache_salt: str = "") -> PinnedPrefix:
        """Keep a prefix (a system prompt, a document) in the prefix cache until it is unpinned.

        Computes it first where it is not computed yet: a run of its own, which `trace` then shows.
        Whole pages are pinned. `cache_salt` is that of the requests which are to share it. A
        context manager: `with llm.pin(document): ...`. Raises ConfigError without a prefix cache,
        InvalidRequestError for a prefix shorter than a page or too long for the pool.
        """
        ids = self.encode(prompt)
        with self._lock:
            engine = self.engine
            check_pin(engine, ids)
            handle = pin_computed(engine, ids, cache_salt)
            if handle is None:
                once = SamplingParams(max_tokens=1, temperature=0.0, cache_salt=cache_salt)
                self.generate([ids], once, progress=False)
                handle = pin_computed(engine, ids, cache_salt)
            if handle is None:
                raise RuntimeError("the prefix was computed and is not in the cache")
            size = engine.memory.block_size
            return PinnedPrefix(len(ids) // size * size, functools.partial(self._unpin, handle))

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: let its pages be evicted again."""
        pinned.unpin()

    def _unpin(self, handle: int) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.memory.unpin(handle)

    def close(self) -> None:
        """Abort what runs; free pages, files and weights. Closing twice is harmless."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
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

    def _start_run(self) -> Engine:
        engine = self.engine
        if engine.has_work:
            raise RuntimeError("this LLM is streaming; finish or close that iterator first")
        engine.trace = new_trace(self._loaded.name, engine.config)
        return engine

    def _run(self, engine: Engine, num_samples: int, progress: bool) -> None:
        with tqdm(
            total=num_samples, desc="requests", unit="req", delay=2, disable=not progress
        ) as bar:
            while engine.has_work:
                finished = engine.step().num_finished
                if finished:
                    bar.update(finished)

    def _params_for(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            params = self.default_sampling_params
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise InvalidRequestError(
                f"{len(params)} SamplingParams for {count} prompts: give one, or one each"
            )
        return params

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a list of ids is taken as it is. Raises InvalidRequestError."""
        return self._loaded.encode(prompt)


class StreamCursor:
    """How much of a request's text and tokens a reader has already been given."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._num_tokens = 0

    def advance(self, engine: Engine, request: Request) -> StreamChunk:
        """What is new since the last call."""
        text = engine.text_of(request)
        tokens = tuple(request.token_ids[request.num_prompt_tokens + self._num_tokens :])
        chunk = StreamChunk(
            request_id=request.request_id,
            index=request.sample_index,
            text=text[self._num_chars :],
            token_ids=tokens,
            finish_reason=request.finish_reason,
            metrics=request.metrics(),
            error=request.error,
        )
        self._num_chars = len(text)
        self._num_tokens += len(tokens)
        return chunk


def make_output(engine: Engine, requests: Sequence[Request], prompt: str | None) -> Output:
    """The output of one prompt's samples."""
    first = requests[0]
    return Output(
        request_id=first.request_id,
        prompt=prompt,
        prompt_token_ids=tuple(first.prompt_token_ids),
        samples=tuple(
            Sample(
                index=request.sample_index,
                text=engine.text_of(request),
                token_ids=tuple(request.output_token_ids),
                finish_reason=request.finish_reason,
                stop_reason=request.stop_reason,
                metrics=request.metrics(),
                logprobs=tuple(request.logprobs) if request.params.logprobs is not None else None,
                error=request.error,
            )
            for request in requests
        ),
        prompt_logprobs=(
            tuple(first.prompt_logprobs) if first.params.prompt_logprobs is not None else None
        ),
    )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
