"""`/v1/completions` and `/v1/chat/completions`: from a request to its answer or its events."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from minserve.frontend.outputs import StreamChunk
from minserve.inputs.prompts import Prompt
from minserve.request import RequestMetrics, SamplingParams
from minserve.server.errors import ApiError
from minserve.server.events import event
from minserve.server.generation import Collected, Generation, usage
from minserve.server.model import ServedModel
from minserve.server.protocol.answers import Speller, chat_logprobs, completion_logprobs
from minserve.server.protocol.params import chat_params, completion_params
from minserve.server.protocol.requests import ChatRequest, CompletionRequest

MOST_PROMPTS = 256
"""Prompts in one request."""


class Exchange(ABC):
    """One request and how its answer is written."""

    object_name: str
    chunk_name: str
    id_prefix: str

    def __init__(
        self,
        model: ServedModel,
        body: CompletionRequest | ChatRequest,
        params: SamplingParams,
    ) -> None:
        self.model = model
        self.params = params
        self.spell = Speller(model.llm.tokenizer)
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(datetime.now().timestamp())
        options = body.stream_options
        self._usage_at_end = options is not None and options.include_usage
        self._usage_always = options is not None and options.continuous_usage_stats
        self._with_ids = bool(body.return_token_ids)
        self._given_tokens = body.max_tokens
        self.prompt_ids: list[list[int]] = []
        """Token ids of each prompt, once `prompts` has made them."""
        self.usage: dict[str, object] = {}
        """Tokens in and out, once the answer is complete."""

    def prompts(self) -> Sequence[Prompt]:
        """What the engine is asked, in token ids; may take long.

        Raises ApiError for an answer that is asked to be longer than the context has room for.
        """
        self.prompt_ids = self.encode()
        most = self.model.llm.config.max_model_len
        for ids in self.prompt_ids:
            if self._given_tokens and len(ids) < most < len(ids) + self._given_tokens:
                raise ApiError(
                    400,
                    f"max_tokens={self._given_tokens} and a prompt of {len(ids)} tokens: expected "
                    f"at most {most} together, the context of {self.model.name}",
                    "max_tokens",
                    code="context_length_exceeded",
                )
        return self.prompt_ids

    @abstractmethod
    def encode(self) -> list[list[int]]:
        """Token ids of each prompt."""

    @abstractmethod
    def choice(self, index: int, sample: Collected) -> dict[str, Any]:
        """A whole sample."""

    @abstractmethod
    def delta(self, index: int, chunk: StreamChunk, state: Collected) -> dict[str, Any]:
        """What a sample has gained; `state` is what it had before."""

    def openings(self) -> list[dict[str, Any]]:
        """Choices of the events before the first token."""
        return []

    def answer(self, samples: Sequence[Sequence[Collected]]) -> dict[str, Any]:
        """The whole answer."""
        choices: list[dict[str, Any]] = []
        for group, prompt_ids in zip(samples, self.prompt_ids, strict=True):
            for sample in group:
                made = self.choice(len(choices), sample)
                if self._with_ids:
                    made |= {"token_ids": sample.token_ids, "prompt_token_ids": prompt_ids}
                choices.append(made)
        self.usage = usage(_metrics(samples))
        return self._frame(self.object_name, choices) | {"usage": self.usage}

    async def events(self, generation: Generation) -> AsyncIterator[str]:
        """The answer as events."""
        for opening in self.openings():
            yield event(self._frame(self.chunk_name, [opening]))
        count = self.params.n
        states = [[Collected() for _ in range(count)] for _ in generation.streams]
        async for number, chunk in generation.pieces():
            state = states[number][chunk.index]
            made = self.delta(number * count + chunk.index, chunk, state)
            state.take(chunk)
            if self._with_ids:
                made["token_ids"] = list(chunk.token_ids)
            told = self._frame(self.chunk_name, [made])
            if self._usage_always:
                told["usage"] = usage(_metrics(states))
            elif self._usage_at_end:
                told["usage"] = None
            yield event(told)
        self.usage = usage(_metrics(states))
        if self._usage_at_end:
            yield event(self._frame(self.chunk_name, []) | {"usage": self.usage})

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self.model.name,
            "choices": choices,
        }


def _metrics(states: Sequence[Sequence[Collected]]) -> list[list[RequestMetrics]]:
    return [[one.metrics for one in group if one.metrics is not None] for group in states]


class Completion(Exchange):
    """`POST /v1/completions`."""

    object_name = chunk_name = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, model: ServedModel, body: CompletionRequest) -> None:
        super().__init__(model, body, completion_params(body, model.defaults))
        self._echo = bool(body.echo)
        given: Any = body.prompt
        one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        self._prompts: list[Prompt] = [given] if one else list(given)
        if not self._prompts:
            raise ApiError(400, "prompt is empty: give a string or token ids", "prompt")
        if len(self._prompts) > MOST_PROMPTS:
            raise ApiError(
                400, f"prompt has {len(self._prompts)} entries: at most {MOST_PROMPTS}", "prompt"
            )
        self._echoes = [""] * len(self._prompts)
        """The text that stands before each prompt's answers."""

    def encode(self) -> list[list[int]]:
        """See `Exchange`."""
        encoded = [self.model.encode(each) for each in self._prompts]
        if self._echo:
            tokenizer = self.model.llm.tokenizer
            self._echoes = [
                given if isinstance(given, str) else tokenizer.decode(ids) if tokenizer else ""
                for given, ids in zip(self._prompts, encoded, strict=True)
            ]
        return encoded

    def choice(self, index: int, sample: Collected) -> dict[str, Any]:
        """See `Exchange`."""
        before = self._echoes[index // self.params.n]
        return {
            "index": index,
            "text": before + sample.text,
            "logprobs": self._logprobs(index, sample, sample.token_ids, len(before)),
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop_reason,
        }

    def delta(self, index: int, chunk: StreamChunk, state: Collected) -> dict[str, Any]:
        """See `Exchange`."""
        before = self._echoes[index // self.params.n]
        offset = len(before) + len(state.text)
        is_first = state.metrics is None
        return {
            "index": index,
            "text": before * is_first + chunk.text,
            "logprobs": self._logprobs(index, chunk, chunk.token_ids, offset),
            "finish_reason": chunk.finish_reason,
            "stop_reason": chunk.stop_reason,
        }

    def _logprobs(
        self,
        index: int,
        part: Collected | StreamChunk,
        token_ids: Sequence[int],
        offset: int,
    ) -> dict[str, Any] | None:
        """Log probabilities of a part of an answer, which stands `offset` characters behind the
        beginning; with those of the prompt, if the part has them."""
        if self.params.logprobs is None:
            return None
        prompt = part.prompt_logprobs or ()
        ids = [*(self.prompt_ids[index // self.params.n] if prompt else ()), *token_ids]
        entries = [*prompt, *(part.logprobs or ())]
        return completion_logprobs(entries, ids, self.spell, 0 if prompt else offset)


class Chat(Exchange):
    """`POST /v1/chat/completions`."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(self, model: ServedModel, body: ChatRequest) -> None:
        super().__init__(model, body, chat_params(body, model.defaults))
        self._given_tokens = self.params.max_tokens
        self._messages = body.messages
        self._tools = body.tools if body.tool_choice != "none" else None
        if self._tools:
            model.check_tools()

    def encode(self) -> list[list[int]]:
        """See `Exchange`."""
        return [self.model.render(self._messages, self._tools)]

    def openings(self) -> list[dict[str, Any]]:
        """See `Exchange`."""
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
             "finish_reason": None}
            for index in range(self.params.n)
        ]  # fmt: skip

    def choice(self, index: int, sample: Collected) -> dict[str, Any]:
        """See `Exchange`."""
        asked = self.params.logprobs is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": chat_logprobs(sample.logprobs, self.spell) if asked else None,
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop_reason,
        }

    def delta(self, index: int, chunk: StreamChunk, state: Collected) -> dict[str, Any]:
        """See `Exchange`."""
        asked = self.params.logprobs is not None
        return {
            "index": index,
            "delta": {"content": chunk.text} if chunk.text else {},
            "logprobs": chat_logprobs(chunk.logprobs or (), self.spell) if asked else None,
            "finish_reason": chunk.finish_reason,
            "stop_reason": chunk.stop_reason,
        }
