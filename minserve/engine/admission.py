"""How a request enters an engine: whether it can be served at all, then its samples in the queue.

Checks refuse with one sentence each, before anything is queued, so a bad request costs the others
nothing. They know limits, not load: a request that only has to wait is refused only if
`scheduling.max_queued_requests` says so. Types and ranges that do not depend on a model were
checked when the parameters were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.engine.migration import ExportedRequest, check_import, exported, imported
from minserve.engine.record import Recorder
from minserve.engine.recovery import Recovery
from minserve.engine.requests import LiveRequests
from minserve.inputs.checks import shorten
from minserve.inputs.errors import QueueFullError
from minserve.inputs.params import (
    WHOLE_VOCABULARY,
    InvalidRequestError,
    SamplingParams,
    plain,
)
from minserve.inputs.prompts import check_arrival, check_priority, check_request_id
from minserve.memory import ExportedPages, KVManager
from minserve.request import Request, Status
from minserve.sampling import Grammars, LogitsMask, check_token_ids, make_masks
from minserve.scheduling import Scheduler
from minserve.tokenizer import Tokenizer


class Intake:
    """Where requests enter one engine, and where they leave it for another."""

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        scheduler: Scheduler,
        requests: LiveRequests,
        recovery: Recovery,
        recorder: Recorder,
        clock: Clock,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._config = config
        self._memory = memory
        self._scheduler = scheduler
        self._requests = requests
        self._recovery = recovery
        self._recorder = recorder
        self._clock = clock
        self._tokenizer = tokenizer
        self.grammars = Grammars(
            tokenizer, config.model.eos_token_ids, config.config.admission.max_grammar_chars
        )
        self._num_added = 0

    @property
    def max_request_tokens(self) -> int:
        """See `Engine.max_request_tokens`."""
        pool_tokens = self._memory.capacity_tokens + 1  # the last token is drawn, never computed
        return min(self._config.max_model_len, pool_tokens)

    def check(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        most_tokens: int | None = None,
    ) -> tuple[SamplingParams, tuple[LogitsMask, ...]]:
        """See `Engine.check`. `most_tokens` replaces `max_request_tokens`."""
        check_request_id(request_id)
        if request_id in self._requests:
            raise InvalidRequestError(f"request {request_id}: one of this name is still running")
        params = check_request(
            request_id,
            prompt_token_ids,
            params,
            self._config,
            self.max_request_tokens if most_tokens is None else most_tokens,
            self._tokenizer is not None,
        )
        try:
            return params, make_masks(params, self._tokenizer, self.grammars)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"request {request_id}: {error}") from None

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        stream_text: bool,
        arrival_s: float | None,
        priority: int,
    ) -> list[Request]:
        """See `Engine.add`."""
        priority, arrival_s = check_priority(priority), check_arrival(arrival_s)
        check_request_id(request_id)
        arrival = self._clock.now() if arrival_s is None else arrival_s
        self._check_queue(request_id, arrival)  # before checks and compiling a form
        prompt = list(prompt_token_ids)
        params, masks = self.check(request_id, prompt, params)
        max_len = self.max_request_tokens
        if params.max_tokens is not None:
            max_len = min(max_len, len(prompt) + params.max_tokens)
        seed = params.seed
        if seed is None:
            seed = self._config.config.seed + self._num_added
        requests = [
            Request(request_id, prompt, params, arrival, seed, index, max_len, masks=masks)
            for index in range(params.n)
        ]
        for request in requests:
            request.priority = priority
            if request is not requests[0] and self._config.config.memory.copy_on_write:
                request.leader = requests[0]
            if params.prompt_logprobs is not None:
                request.prompt_logprobs.append(None)
        self._num_added += 1
        self._recorder.note_arrival(arrival)
        self._enter(requests, stream_text)
        return requests

    def _check_queue(self, request_id: str, arrival_s: float) -> None:
        """Raise QueueFullError, and count it, if no request may join the queue now."""
        if self._scheduler.is_full:
            self._recorder.note_arrival(arrival_s)
            self._recorder.num_refused += 1
            limit = self._config.config.scheduling.max_queued_requests
            raise QueueFullError(
                f"request {request_id}: the queue is full "
                f"(scheduling.max_queued_requests={limit}): send the request again later, or raise "
                "the limit"
            )

    def _enter(
        self,
        requests: Sequence[Request],
        stream_text: bool,
        pages: Sequence[ExportedPages | None] = (),
    ) -> None:
        """Queue the samples of one request; `pages` are the computed tokens that each brings."""
        try:
            with self._recovery.change(requests):
                self._requests.enter(requests[0].request_id, requests)
                for request, brought in zip_longest(requests, pages):
                    self._requests.follow_text(request, stream_text)
                    if brought is not None:
                        self._memory.away.adopt(request, brought)
                        request.status = Status.PREEMPTED
                    # One that has run in another engine waits again, since now.
                    has_run = request.first_scheduled_s is not None
                    self._scheduler.add(request, self._clock.now() if has_run else None)
        except BaseException:
            for request in requests:  # the caller never receives them
                self._requests.withdraw(request)
            raise

    def export(self, request_id: str) -> ExportedRequest:
        """See `Engine.export_request`."""
        requests = list(self._requests.samples(request_id))
        if not requests:
            raise InvalidRequestError(
                f"export_request({shorten(request_id)}): no live request has this name; it may "
                "have ended"
            )
        first = requests[0]
        with self._recovery.change(()):
            moved = ExportedRequest(
                request_id,
                tuple(map(int, first.prompt_token_ids)),  # plain, whatever the caller gave
                first.params,
                self._requests.streams_text(first),
                self._config.model,
                self._config.config.dtype,
                self._config.config.quantization.weight_format,
                tuple(exported(request, self._memory, self._clock) for request in requests),
            )
        with self._recovery.change(requests):  # if it fails half-way, they end here
            for request in requests:
                self._requests.hand_over(request)
        return moved

    def adopt(self, moved: ExportedRequest) -> list[Request]:
        """See `Engine.import_request`."""
        moved = check_import(moved, self._config, self.max_request_tokens)
        # What its samples may reach fits; `max_tokens` may ask for more than the other engine gave.
        most = self._config.max_model_len
        params, masks = self.check(moved.request_id, moved.prompt_token_ids, moved.params, most)
        moved = replace(moved, params=params)
        for sample in moved.samples:
            if sample.pages is not None:
                try:
                    self._memory.away.check(sample.pages, len(sample.token_ids))
                except ValueError as error:
                    raise InvalidRequestError(f"request {moved.request_id}: {error}") from None
        requests = [imported(moved, sample, masks, self._clock) for sample in moved.samples]
        self._enter(requests, moved.stream_text, [sample.pages for sample in moved.samples])
        return requests


def check_request(
    request_id: str,
    prompt: Sequence[int],
    params: SamplingParams,
    config: ResolvedConfig,
    max_request_tokens: int,
    has_tokenizer: bool,
) -> SamplingParams:
    """The checked parameters to serve the request with; -1 logprobs are replaced by the count.

    Raises InvalidRequestError if the request can never be served. `max_request_tokens` is the
    longest prompt plus output that the model and the KV pool allow.
    """
    try:
        params = plain(params)
        _check_prompt(prompt, config)
        _check_sizes(params, config)
        check_token_ids(params, config.model.vocab_size)
        if params.stop and not has_tokenizer:
            raise InvalidRequestError(
                "stop strings need a tokenizer and this model came without one; use stop_token_ids"
            )
        _check_something_is_left(params, config)
        _check_length(len(prompt), params, config, max_request_tokens)
        params = _resolve_logprobs(params, config.model.vocab_size)
        _check_entries(len(prompt), params, config)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"request {request_id}: {error}") from None
    return params


def _check_prompt(prompt: Sequence[int], config: ResolvedConfig) -> None:
    vocab = config.model.vocab_size
    if not prompt:
        raise InvalidRequestError("the prompt is empty; give at least one token")
    if len(prompt) >= config.max_model_len:
        raise InvalidRequestError(
            f"a prompt of {len(prompt)} tokens leaves no room for output within "
            f"max_model_len={config.max_model_len}: shorten the prompt or raise "
            "scheduling.max_model_len"
        )
    try:
        ids = np.asarray(prompt)
    except (ValueError, OverflowError):  # lists of unequal lengths
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidRequestError(
            "the prompt's token ids are not all 64-bit integers: give a list of integers"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        raise InvalidRequestError(
            f"token id {low if low < 0 else high} in the prompt is outside the vocabulary of "
            f"{vocab}"
        )


def _check_sizes(params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse sizes that would delay all requests, before any work is done for them."""
    limits = config.config.admission
    if params.n < 1:  # a request without samples would never end
        raise InvalidRequestError(f"SamplingParams.n={params.n}: expected at least 1")
    longest = max(map(len, (*params.stop, *params.bad_words)), default=0)
    ids, biases = len(params.stop_token_ids), len(params.logit_bias)
    table = [
        (params.n, limits.max_n, "max_n", "n asks for {} samples"),
        (len(params.stop), limits.max_stop_strings, "max_stop_strings", "stop has {} strings"),
        (len(params.bad_words), limits.max_bad_words, "max_bad_words", "bad_words has {} words"),
        (longest, limits.max_stop_chars, "max_stop_chars", "stop or bad_words has {} characters"),
        (ids, limits.max_stop_token_ids, "max_stop_token_ids", "stop_token_ids has {} tokens"),
        (biases, limits.max_logit_biases, "max_logit_biases", "logit_bias has {} tokens"),
    ]
    for size, most, field, said in table:
        if size > most:
            raise InvalidRequestError(
                f"SamplingParams.{said.format(size)}, and admission.{field} allows {most}: ask for "
                "less, or raise that field"
            )


def _check_something_is_left(params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse bans that leave no token to draw."""
    vocab = config.model.vocab_size
    banned = {token for token, bias in params.logit_bias.items() if bias == -math.inf}
    why = "SamplingParams.logit_bias bans"
    if params.min_tokens:
        banned.update(params.stop_token_ids)
        if not params.ignore_eos:
            banned.update(config.model.eos_token_ids)
        why = "SamplingParams.logit_bias and min_tokens ban"
    allowed = params.allowed_token_ids
    if allowed is None and len(banned) >= vocab:
        raise InvalidRequestError(f"{why} all {vocab} tokens of the vocabulary: leave some")
    if allowed is not None and banned.issuperset(allowed):
        raise InvalidRequestError(f"{why} all of allowed_token_ids: allow other tokens")


def _check_length(
    num_prompt: int, params: SamplingParams, config: ResolvedConfig, max_request_tokens: int
) -> None:
    least = params.max_tokens if params.ignore_eos else params.min_tokens
    shortest = min(num_prompt + max(1, least or 1), config.max_model_len)
    if shortest > max_request_tokens:
        raise InvalidRequestError(
            f"{shortest} tokens can never fit into the KV pool, which holds "
            f"{max_request_tokens}: raise memory.kv_bytes or ask for less"
        )


def _resolve_logprobs(params: SamplingParams, vocab: int) -> SamplingParams:
    """Replace -1 logprobs by the size of the vocabulary, and refuse more than that."""
    most = max(params.logprobs or 0, params.prompt_logprobs or 0)
    if most > vocab:
        raise InvalidRequestError(
            f"{most} logprobs asked for, the vocabulary has {vocab} tokens: -1 asks for all"
        )
    if WHOLE_VOCABULARY not in (params.logprobs, params.prompt_logprobs):
        return params
    return replace(
        params,
        logprobs=vocab if params.logprobs == WHOLE_VOCABULARY else params.logprobs,
        prompt_logprobs=(
            vocab if params.prompt_logprobs == WHOLE_VOCABULARY else params.prompt_logprobs
        ),
    )


def _check_entries(num_prompt: int, params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse more log probabilities than the host should store for one request."""
    room = config.max_model_len - num_prompt
    num_output = room if params.max_tokens is None else min(room, params.max_tokens)
    entries = num_output * (params.logprobs or 0) + num_prompt * (params.prompt_logprobs or 0)
    entries *= params.n
    most = config.config.admission.max_logprob_entries
    if entries > most:
        raise InvalidRequestError(
            f"{entries} log probabilities asked for (tokens times alternatives), and "
            f"admission.max_logprob_entries allows {most}: ask for fewer alternatives or tokens"
        )
