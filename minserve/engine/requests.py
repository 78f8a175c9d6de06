"""The requests of an engine, from the moment they are added until their end has been reported.

Knows their names, their text as it grows, and which of them have changed since the last call. Does
not decide when a request ends: the loop, the commit and recovery do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minserve.clock import Clock
from minserve.engine.record import Recorder
from minserve.engine.recovery import describe, is_interrupt
from minserve.request import FinishReason, Request, Status
from minserve.scheduling import Scheduler
from minserve.tokenizer import TextStream, Tokenizer


class LiveRequests:
    """Requests by name, each a list of samples, in order of arrival."""

    def __init__(
        self, scheduler: Scheduler, tokenizer: Tokenizer | None, clock: Clock, recorder: Recorder
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._clock = clock
        self._recorder = recorder
        self._by_name: dict[str, list[Request]] = {}
        self.texts: dict[Request, TextStream] = {}
        """Text streams of requests that need one while they run: see `follow_text`."""
        self.news: dict[Request, None] = {}
        """Requests that got a token or ended since `take_news`, in order."""

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_name

    def __iter__(self) -> Iterator[Request]:
        return (request for group in self._by_name.values() for request in group)

    def samples(self, request_id: str) -> Sequence[Request]:
        """The live samples with this name; empty if there are none."""
        return self._by_name.get(request_id, ())

    def names(self) -> list[str]:
        """Names with a live sample."""
        return list(self._by_name)

    def enter(self, request_id: str, requests: Sequence[Request]) -> None:
        """Add the samples of a new prompt."""
        self._by_name[request_id] = list(requests)

    def follow_text(self, request: Request, stream_text: bool) -> None:
        """Decode the request's text while it runs, if the caller streams it or a stop string needs
        it."""
        params = request.params
        if self._tokenizer is not None and params.detokenize and (stream_text or params.stop):
            self.texts[request] = TextStream(self._tokenizer, params)

    def tell(self, request: Request) -> None:
        """Mark a request as changed: it has a new token, or has ended."""
        self.news[request] = None

    def take_news(self) -> list[Request]:
        """Requests that changed since the last call, in order."""
        news = list(self.news)
        self.news.clear()
        return news

    def forget(self, request: Request) -> None:
        """Drop the text of a request that has ended."""
        self.texts.pop(request, None)

    def withdraw(self, request: Request) -> None:
        """Drop everything about a request that was never returned to its caller."""
        self.forget(request)
        self.news.pop(request, None)

    def text_of(self, request: Request) -> str:
        """The request's text so far. Empty without a tokenizer, or if `SamplingParams.detokenize`
        is False."""
        if self._tokenizer is None or not request.params.detokenize:
            return ""
        stream = self.texts.get(request)
        if stream is not None:
            return stream.text
        params, tokens = request.params, request.output_token_ids
        ended_by_id = request.finish_reason == "stop" and not isinstance(request.stop_reason, str)
        if ended_by_id and not params.include_stop_str_in_output:
            del tokens[-1]
        return self._tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        *,
        now: float | None = None,
    ) -> None:
        """End a request: complete its text, free its pages, and report its end."""
        stream = self.texts.get(request)
        if stream is not None:
            try:
                stream.finish()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                reason, stop_reason = "error", None
                request.error, request.cause = describe(error), error
            # Text that was held back may turn out at the end to contain a stop string. The stop
            # string has then cut the text, whatever ended the tokens.
            if reason in ("stop", "length") and stream.stopped_by is not None:
                reason, stop_reason = "stop", stream.stopped_by
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.finished_s = self._clock.now() if now is None else now
        self._retire(request)

    def fail(self, request: Request, error: BaseException | None) -> None:
        """End a request with an error. If ending it was interrupted before, complete that."""
        if not request.finished:
            request.error, request.cause = describe(error), error
            self.finish(request, "error")
        elif request in self.samples(request.request_id):
            self._retire(request)

    def _retire(self, request: Request) -> None:
        """Remove an ended request from queues, pages and names, and report its end."""
        self._scheduler.remove(request)
        self._tell_end(request)
        siblings = self._by_name[request.request_id]
        siblings.remove(request)
        if not siblings:
            del self._by_name[request.request_id]

    def _tell_end(self, request: Request) -> None:
        self.tell(request)
        assert request.finish_reason is not None
        self._recorder.trace.finish_request(
            request.request_id, request.sample_index, request.metrics(), request.finish_reason
        )

    def end_all(self, error: BaseException | None, now_s: float) -> int:
        """End every request without touching queues and pages, because the caller resets both;
        returns how many. Nothing in here may fail."""
        live = list(self)
        for request in live:
            if not request.finished:
                request.error, request.cause = describe(error), error
                request.finish_reason, request.finished_s = "error", now_s
            request.status = Status.FINISHED
            self._tell_end(request)
        self._by_name.clear()
        return len(live)
