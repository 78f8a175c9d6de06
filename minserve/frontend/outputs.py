"""From requests to the caller's results: outputs when they end, chunks while they grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.engine import Engine
from minserve.engine.recovery import EngineError, describe, is_interrupt
from minserve.request import (
    FinishReason,
    Output,
    Request,
    RequestMetrics,
    Sample,
    TokenLogprobs,
)


@dataclass(frozen=True)
class StreamChunk:
    """The text and tokens that a streamed sample gained in one step."""

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
    stop_reason: int | str | None = None
    """As in `Sample`."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """Of the new tokens, if they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """As in `Output`, if they were asked for: with the sample's first token, and None after it."""


class StreamCursor:
    """How much of a request's text and tokens has been delivered to its reader."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._num_tokens = 0
        self.ended = False
        """True after the last chunk was made."""

    def advance(self, engine: Engine, request: Request) -> StreamChunk:
        """A chunk with everything new since the last call."""
        text = engine.text_of(request)
        params, before = request.params, self._num_tokens
        tokens = tuple(request.token_ids[request.num_prompt_tokens + before :])
        is_first = not before and bool(tokens)
        chunk = StreamChunk(
            request_id=request.request_id,
            index=request.sample_index,
            text=text[self._num_chars :],
            token_ids=tokens,
            finish_reason=request.finish_reason,
            metrics=request.metrics(),
            error=request.error,
            stop_reason=request.stop_reason,
            logprobs=tuple(request.logprobs[before:]) if params.logprobs is not None else None,
            prompt_logprobs=(
                tuple(request.prompt_logprobs)
                if is_first and params.prompt_logprobs is not None
                else None
            ),
        )
        self._num_chars = len(text)
        self._num_tokens += len(tokens)
        self.ended = chunk.finish_reason is not None
        return chunk


def make_output(engine: Engine, requests: Sequence[Request], prompt: str | None) -> Output:
    """The output of one prompt's samples."""
    first = requests[0]
    texts = [_text(engine, request) for request in requests]  # first: this may end a sample
    # Each sample computes the prompt's logprobs, and a sample that failed may have
    # only some of them.
    scored = max(requests, key=lambda request: len(request.prompt_logprobs))
    return Output(
        request_id=first.request_id,
        prompt=prompt,
        prompt_token_ids=tuple(first.prompt_token_ids),
        samples=tuple(
            Sample(
                index=request.sample_index,
                text=text,
                token_ids=tuple(request.output_token_ids),
                finish_reason=request.finish_reason,
                stop_reason=request.stop_reason,
                metrics=request.metrics(),
                logprobs=tuple(request.logprobs) if request.params.logprobs is not None else None,
                error=request.error,
            )
            for request, text in zip(requests, texts, strict=True)
        ),
        prompt_logprobs=(
            tuple(scored.prompt_logprobs) if first.params.prompt_logprobs is not None else None
        ),
    )


def refused_output(
    request_id: str, prompt: str | None, error: Exception, now_s: float, num_samples: int
) -> Output:
    """The output of a prompt that was refused before it ran: as many samples as were asked for."""
    metrics = RequestMetrics(now_s, None, None, now_s, 0, 0, 0)
    samples = tuple(
        Sample(index, "", (), "error", None, metrics, error=str(error))
        for index in range(num_samples)
    )
    return Output(request_id, prompt, (), samples)


def _text(engine: Engine, request: Request) -> str:
    """The sample's text. If it cannot be produced, the sample ends with an error."""
    try:
        return engine.text_of(request)
    except BaseException as error:
        if is_interrupt(error):
            raise
        request.finish_reason = "error"
        request.error, request.cause = describe(error), error
        return ""


def failure_of(requests: Sequence[Request]) -> EngineError | None:
    """The error of the first of these samples that ended with one; None if none did.

    A new exception each time: raising an exception changes it, so two callers must not share it.
    """
    for request in requests:
        if request.finish_reason == "error":
            return failure(request.request_id, request.cause, request.error)
    return None


def failure(name: str, cause: BaseException | None, error: str | None = None) -> EngineError:
    """An EngineError about the request with this name, chained to its cause."""
    if cause is None:
        return EngineError(error)
    told = EngineError(f"{name}: the engine failed: {describe(cause)}")
    told.__cause__ = cause
    return told
