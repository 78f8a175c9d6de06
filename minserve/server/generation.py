"""Runs the prompts of one HTTP request on the engine: streams opened, read together, and left.

However the request ends (an answer, an error, a client that goes away, a deadline, the server's
own end), its streams are aborted, so that no page stays with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from minserve.async_llm import AsyncLLM, Stream
from minserve.frontend.outputs import StreamChunk
from minserve.inputs.prompts import Prompt
from minserve.request import FinishReason, RequestMetrics, SamplingParams, TokenLogprobs
from minserve.server.errors import ApiError

Piece = tuple[int, StreamChunk]
"""(number of the prompt, what one of its samples has gained)."""


class Generation:
    """The streams of one HTTP request, a stream for each prompt. Leave it with `close`."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    async def start(
        cls,
        llm: AsyncLLM,
        executor: Executor,
        prompts: Callable[[], Sequence[Prompt]],
        params: SamplingParams,
        priority: int,
    ) -> Generation:
        """Send the prompts, and wait until the engine has accepted all of them.

        `prompts` is called in the executor, because rendering and tokenizing would block the event
        loop. Raises the error of the first one that was refused; the others are aborted then.
        """
        made = cls()

        def send() -> None:
            for prompt in prompts():
                if not made._hold(llm.add(prompt, params, priority=priority)):
                    return

        try:
            await asyncio.get_running_loop().run_in_executor(executor, send)
            for stream in made.streams:
                await stream.accepted()
        except BaseException:
            made.close()
            raise
        return made

    def _hold(self, stream: Stream) -> bool:
        """Take a stream in; False if the client has left meanwhile, and the stream is aborted."""
        with self._lock:
            if not self._closed:
                self.streams.append(stream)
                return True
        stream.abort()
        return False

    def close(self) -> None:
        """Abort what has not ended, and what is still being sent."""
        with self._lock:
            self._closed = True
        for stream in self.streams:
            stream.abort()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Everything that comes, in order of arrival. Raises the error that ended a stream, and
        ApiError if a stream was aborted by other hands: the server is stopping."""
        if len(self.streams) == 1:
            async for chunk in self.streams[0]:
                yield 0, _checked(chunk)
            return
        ready: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        readers = [
            asyncio.create_task(_read(number, stream, ready))
            for number, stream in enumerate(self.streams)
        ]
        try:
            left = len(readers)
            while left:
                item = await ready.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item[0], _checked(item[1])
        finally:
            for reader in readers:
                reader.cancel()


async def _read(
    number: int, stream: Stream, ready: asyncio.Queue[Piece | BaseException | None]
) -> None:
    try:
        async for chunk in stream:
            ready.put_nowait((number, chunk))
        ready.put_nowait(None)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        ready.put_nowait(error)


def _checked(chunk: StreamChunk) -> StreamChunk:
    if chunk.finish_reason == "abort":
        raise ApiError(503, "the server is stopping: send the request again", code="aborted")
    if chunk.finish_reason == "error":
        raise ApiError(500, chunk.error or "the request failed", code="engine_error")
    return chunk


@dataclass
class Collected:
    """All that a sample has told so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    metrics: RequestMetrics | None = None

    def take(self, chunk: StreamChunk) -> None:
        """Add a chunk."""
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs or ()
        self.prompt_logprobs = self.prompt_logprobs or chunk.prompt_logprobs
        self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason
        self.metrics = chunk.metrics


async def collect(generation: Generation, num_samples: int) -> list[list[Collected]]:
    """Every prompt's samples, when all of them have ended."""
    found = [[Collected() for _ in range(num_samples)] for _ in generation.streams]
    async for number, chunk in generation.pieces():
        found[number][chunk.index].take(chunk)
    return found


def usage(metrics: Sequence[Sequence[RequestMetrics]]) -> dict[str, object]:
    """Tokens in and out of a request; `metrics` are of each prompt's samples."""
    prompt = sum(samples[0].num_prompt_tokens for samples in metrics if samples)
    cached = sum(samples[0].num_cached_tokens for samples in metrics if samples)
    output = sum(one.num_output_tokens for samples in metrics for one in samples)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
