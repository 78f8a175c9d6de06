"""The synchronous entry point: `LLM(model, config)` with generate, stream, chat and close.

Runs the engine in the caller's thread. Turns strings into token ids and finished requests into
outputs; the engine does scheduling, memory and sampling. Several threads may call it: `generate`
calls take turns, streams run in parallel, and a thread that waits for a chunk steps the engine for
all of them. For servers and widgets, which must not block, see `AsyncLLM`.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from minserve.build import build_engine, check_engine_arguments, check_predictor, new_trace
from minserve.clock import Clock
from minserve.config import EngineConfig, Facts, ResolvedConfig
from minserve.engine import Engine
from minserve.engine.pins import PinnedPrefix, check_pinned
from minserve.frontend.arguments import (
    Errors,
    check_errors,
    check_params,
    check_process,
    choose_params,
)
from minserve.frontend.chat import render, render_each
from minserve.frontend.chunks import ChunkStream
from minserve.frontend.generation import Given, complete, make_jobs
from minserve.frontend.pins import pin_here
from minserve.frontend.share import REENTERED, EngineShare
from minserve.inputs.conversations import Message, parse_conversations
from minserve.inputs.prompts import Prompt, check_salt, parse_each, parse_prompts
from minserve.loading import LoadedModel, load_model
from minserve.request import Output, SamplingParams
from minserve.scheduling import LengthPredictor
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace


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
        """Load `model`: "zoo/NAME", a Hugging Face directory, a .gguf file, or a name on the hub.

        Raises ConfigError for a configuration that cannot work with this model and device, and an
        error with a sentence for a directory that cannot be loaded. `predictor` makes the predictor
        of answer lengths for scheduling.order="sjf", such as `minserve.zoo.lengths.LengthProbe`.
        `progress` shows loading bars on stderr.
        """
        settings = check_engine_arguments(config, clock, predictor)
        loaded = load_model(
            model, settings, progress=progress, facts=Facts(own_predictor=predictor is not None)
        )
        engine = build_engine(loaded, clock, check_predictor(predictor, loaded))
        self._model = loaded.description  # the engine alone holds the weights
        fresh_trace = functools.partial(new_trace, loaded.name, engine.config)
        self._share = EngineShare(engine, fresh_trace)  # alone holds the engine, and lets it go
        self._names = map("request-{}".format, itertools.count())
        self._process = os.getpid()
        self._turn = threading.RLock()
        """Held by the call that adds requests to the engine: generate, chat, pin."""
        self._running = False
        """True during the call of generate or chat that holds `_turn`."""

    @property
    def engine(self) -> Engine:
        """The engine. Raises RuntimeError after `close()`."""
        return self._share.engine

    @property
    def config(self) -> ResolvedConfig:
        """The configuration that runs, with notes on the choices made."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self._model.tokenizer

    @property
    def trace(self) -> RunTrace:
        """The trace of the last run (`generate`, `chat` or `stream`)."""
        return self.engine.trace

    @property
    def default_sampling_params(self) -> SamplingParams:
        """The parameters used if a call gives none: the values of generation_config.json."""
        return self._model.default_sampling_params()

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
        """Complete prompts, one or many (strings, token ids, vLLM's dictionaries); returns
        outputs in their order.

        `params` is one for all prompts or one each, and so is `priority`; if `scheduling.order` is
        "priority", smaller numbers go first. `progress` shows a bar on stderr if the call takes
        more than two seconds. `sampling_params` and `use_tqdm` are vLLM's names for two of these.

        With `errors="raise"` every prompt is checked before anything runs: InvalidRequestError
        names the first that cannot be served. A request that fails later ends the call, which
        raises that error. With "return" a refused or failed request is an Output with finish reason
        "error" and a sentence that says why, and the others are completed.
        """
        self._check_call(errors)
        params = choose_params(params, sampling_params)
        most = self.config.max_prompt_chars
        given: Sequence[Given]
        given = parse_prompts(prompts, most) if errors == "raise" else parse_each(prompts, most)
        shows = progress if use_tqdm is None else use_tqdm
        return self._complete(given, params, priority, shows, errors)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> ChunkStream:
        """Complete one prompt, a chunk per sample and step, from any thread; stopping the
        iteration, or its `close()`, aborts it. If the request is refused, this call raises; if it
        fails later, the iteration raises."""
        check_process(self._process, "LLM")
        one = check_params(params) or self.default_sampling_params
        ids = self.encode(prompt)
        name = next(self._names)
        # Checking compiles the form of structured outputs, which is part of the TTFT.
        arrival_s = None if one.structured_outputs is None else self.engine.clock.now()
        self.engine.check(name, ids, one)
        return ChunkStream(self._share, name, ids, one, arrival_s)

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
        """Answer a conversation, `[{"role": "user", "content": "..."}]`, with the model's chat
        template. For a list of conversations, returns a list of answers.

        Options are those of `generate`. Raises InvalidRequestError if the model has no tokenizer or
        no chat template.
        """
        self._check_call(errors)
        params = choose_params(params, sampling_params)
        given, many = render_each(self._model, messages, errors)
        shows = progress if use_tqdm is None else use_tqdm
        outputs = self._complete(given, params, priority, shows, errors)
        return outputs if many else outputs[0]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids that `chat` sends for a conversation."""
        (conversation,), _ = parse_conversations([messages], self.config.max_prompt_chars)
        return render(self._model, conversation)

    def pin(self, prompt: Prompt, *, cache_salt: str = "") -> PinnedPrefix:
        """Keep a prefix (a system prompt, a document) in the prefix cache until it is unpinned.

        If it is not computed yet, computes it in a run of its own, which `trace` then shows. Whole
        pages are pinned. `cache_salt` must be that of the requests that will share the prefix. The
        result is a context manager: `with llm.pin(document): ...`. Raises ConfigError without a
        prefix cache, InvalidRequestError for a prefix shorter than a page or too long for the pool.
        """
        check_process(self._process, "LLM")
        ids, salt = self.encode(prompt), check_salt(cache_salt)

        def compute(params: SamplingParams) -> None:
            self.generate([ids], params, progress=False)

        with self._turn:
            return pin_here(self._share, ids, salt, compute)

    def unpin(self, pinned: PinnedPrefix) -> None:
        """`pinned.unpin()`: allow its pages to be evicted again."""
        check_pinned(pinned).unpin()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids are returned unchanged. Raises InvalidRequestError."""
        return self._model.encode(prompt)

    def close(self) -> None:
        """Abort running requests; free pages, files and weights. Closing twice does no harm."""
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

    def _check_call(self, errors: Errors) -> None:
        check_process(self._process, "LLM")
        check_errors(errors)

    def _complete(
        self,
        given: Sequence[Given],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
        progress: bool,
        errors: Errors,
    ) -> list[Output]:
        with self._turn:
            if self._running:  # it would end the requests of the call that it interrupts
                raise RuntimeError(REENTERED)
            try:
                self._running = True
                jobs = make_jobs(
                    self._model, self.engine, self._names, given, params, priority, errors
                )
                return complete(self._share, jobs, progress, errors)
            finally:
                self._running = False
