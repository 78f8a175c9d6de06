"""A caller's results (outputs and their metrics), and the engine's record of a request.

Outputs are frozen; `Request` is one sample in flight and changes at every step. What a caller sends
is in `inputs`. Knows nothing about pages, tensors or text decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from minserve.inputs.errors import InvalidRequestError, QueueFullError
from minserve.inputs.params import SamplingParams
from minserve.inputs.structured import StructuredOutputs

__all__ = [
    "FinishReason",
    "InvalidRequestError",
    "LogitsMask",
    "Output",
    "QueueFullError",
    "Request",
    "RequestMetrics",
    "Sample",
    "SamplingParams",
    "Status",
    "StructuredOutputs",
    "TokenLogprobs",
    "TokenMask",
]

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one position: of its token, and of the likeliest tokens."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""


@dataclass(frozen=True)
class RequestMetrics:
    """Times of the events of one sample, in seconds of the engine's clock."""

    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    finished_s: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the cache when the sample was first admitted."""
    num_proposed_tokens: int = 0
    """Tokens that a proposer drafted for this sample and the model verified."""
    num_accepted_tokens: int = 0
    """Of these, tokens that became part of the output."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens per proposed one; None if none was proposed."""
        if not self.num_proposed_tokens:
            return None
        return self.num_accepted_tokens / self.num_proposed_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float | None:
        """End-to-end latency, from arrival."""
        return None if self.finished_s is None else self.finished_s - self.arrival_s

    @property
    def queue_s(self) -> float | None:
        """Time from arrival to the first step that computed anything for this sample."""
        if self.first_scheduled_s is None:
            return None
        return self.first_scheduled_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (end-to-end - TTFT) / (n - 1)."""
        if self.num_output_tokens < 2 or self.finished_s is None or self.first_token_s is None:
            return None
        return (self.finished_s - self.first_token_s) / (self.num_output_tokens - 1)


@dataclass(frozen=True)
class Sample:
    """One finished (or streaming) continuation of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    """The stop token id or stop string that ended the text; None for an end-of-sequence token."""
    metrics: RequestMetrics
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None
    """One sentence: the error, if the finish reason is "error"."""

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the drawn tokens' log probabilities, if they were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True)
class Output:
    """The result for one prompt. The plain attributes are those of the first sample."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """One entry per prompt token; the first has no predecessor and is None."""

    @property
    def text(self) -> str:
        """Generated text."""
        return self.samples[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Generated token ids."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "stop", "length", "abort", "error", or None while streaming."""
        return self.samples[0].finish_reason

    @property
    def metrics(self) -> RequestMetrics:
        """Timings of the first sample."""
        return self.samples[0].metrics

    @property
    def finished(self) -> bool:
        """True if every sample has a finish reason."""
        return all(sample.finish_reason is not None for sample in self.samples)


class Status(Enum):
    """The state of a request. PREEMPTED requests wait like new ones but keep their tokens."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(frozen=True)
class TokenMask:
    """Which tokens may be drawn at one position; the default allows all."""

    allowed: npt.NDArray[np.uint8] | None = None
    """A bit per token, 1 if it is allowed: token t is bit `t % 8` of byte `t // 8`; tokens beyond
    the end are not allowed. None: all are allowed. For lists of about the vocabulary's length."""
    banned: Collection[int] = ()
    """Tokens that are not allowed. For a few tokens."""


class LogitsMask(Protocol):
    """A rule about the next token of one request: a fixed list, a word list, a grammar.

    A pure function of the tokens: after a preemption, for another sample of the prompt, or for a
    proposed token, it returns the same result.
    """

    @property
    def needs_known_tokens(self) -> bool:
        """True if the result depends on the tokens before: then it cannot be planned while
        they are in flight."""
        ...

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        """The tokens allowed after `tokens`: the request's prompt and output up to there, and
        perhaps proposed tokens. Unless `needs_known_tokens`, the newest ones may be missing.

        A proposed token may be one that this rule bans; the answer after it is not used, but must
        not be an error."""
        ...


# With slots: Python shares the names of at most 30 attributes between objects.
@dataclass(eq=False, slots=True, weakref_slot=True)
class Request:
    """One sample in flight: its tokens, how many of them are computed, and its timings.

    There is no prefill phase and no decode phase: a request catches up from
    `num_computed_tokens` to `num_tokens`, a chunk or a single token at a time.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_s: float
    seed: int
    sample_index: int = 0
    max_len: int = 0
    """Longest prompt plus output, in tokens, that this request may reach."""
    token_ids: list[int] = field(default_factory=list)
    """Prompt and output together."""
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache. The memory manager counts them."""
    num_inflight_tokens: int = 0
    """Tokens submitted to the runner and not yet collected."""
    num_pending_tokens: int = 0
    """Tokens being drawn by a step in flight: they come after `token_ids`, and only the
    device knows them. A step that verifies a draft counts as one, although it may draw more."""
    pending_row: int = 0
    """Index of the first pending token among those that its step draws."""
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    """When the newest token arrived; several of one step count as one arrival."""
    finished_s: float | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Tokens found computed at the first admission: a prefix hit, or another sample's prompt."""
    num_proposed_tokens: int = 0
    num_accepted_tokens: int = 0
    """As in `RequestMetrics`."""
    leader: Request | None = None
    """The first sample of the same prompt, whose computed prompt this one shares."""
    num_ever_computed: int = 0
    """Largest `num_computed_tokens` so far. Tokens below it that are computed again
    count as recomputed."""
    error: str | None = None
    """One sentence: the error, if the finish reason is "error"."""
    cause: BaseException | None = None
    """The exception behind `error`, if there was one."""
    priority: int = 0
    """If `scheduling.order` is "priority", a smaller number goes first."""
    masks: tuple[LogitsMask, ...] = ()
    """Rules about which tokens may be drawn, made once per prompt (`sampling.make_masks`)."""
    needs_known_tokens: bool = field(init=False)
    """True if a token in flight decides how the next one is drawn: penalties count it, and a
    mask may read it."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)
        self.needs_known_tokens = self.params.has_penalties or any(
            mask.needs_known_tokens for mask in self.masks
        )

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and output."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens generated so far."""
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_coming_tokens(self) -> int:
        """Known tokens and pending ones."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens, known or pending, that are neither computed nor in flight: the scheduler's
        one subtraction.

        The last token of a request of maximum length is never computed.
        """
        if not self.num_pending_tokens:
            return len(self.token_ids) - self.num_computed_tokens - self.num_inflight_tokens
        tokens = min(self.num_coming_tokens, self.max_len - 1)
        return tokens - self.num_computed_tokens - self.num_inflight_tokens

    @property
    def is_decoding(self) -> bool:
        """True if only its newest generated token is left to compute, known or pending. With a
        draft, the step that computes it also verifies the tokens proposed after it."""
        has_output = self.num_output_tokens > 0 or self.num_pending_tokens > 0
        return has_output and self.num_uncomputed_tokens == 1

    @property
    def cache_namespace(self) -> tuple[str, ...]:
        """Everything besides the tokens that must be equal for two requests to share pages."""
        return (self.params.cache_salt,) if self.params.cache_salt else ()

    @property
    def finished(self) -> bool:
        """True once the request has its finish reason."""
        return self.finish_reason is not None

    def metrics(self) -> RequestMetrics:
        """A frozen copy of the timings."""
        return RequestMetrics(
            arrival_s=self.arrival_s,
            first_scheduled_s=self.first_scheduled_s,
            first_token_s=self.first_token_s,
            finished_s=self.finished_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            num_cached_tokens=self.num_cached_tokens,
            num_proposed_tokens=self.num_proposed_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
        )
