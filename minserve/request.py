"""What a caller sends and gets: sampling parameters, requests, outputs and their metrics.

`SamplingParams` and the outputs are frozen; `Request` is the engine's own record of one sample in
flight and changes at every step. Knows nothing about pages, tensors or text decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


class InvalidRequestError(ValueError):
    """A request that cannot be served as asked. The message says which value, and what to do."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn and when to stop. Names and meanings are vLLM's and OpenAI's.

    Raises InvalidRequestError when a value is out of its range.
    """

    max_tokens: int | None = 128
    """Most tokens to generate; None means up to the engine's `max_model_len`."""
    min_tokens: int = 0
    """Tokens to generate before an end-of-sequence token or a stop condition may end the text."""
    temperature: float = 1.0
    """0 is greedy; 1 samples from the model's own distribution."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this total probability (Holtzman et al., 1904.09751)."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest one (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divide the positive (multiply the negative) logits of tokens seen in prompt or output."""
    presence_penalty: float = 0.0
    """Subtract from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtract times the number of occurrences among the generated tokens."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    stop: Sequence[str] = ()
    """Strings that end the text; they are cut from it unless `include_stop_str_in_output`."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the text, besides the model's own end-of-sequence ids."""
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens: for benchmarks of fixed length."""
    n: int = 1
    """Samples per prompt, each with its own random stream."""
    seed: int | None = None
    """Same seed, same tokens for equal logits, whatever else is in the batch. None: the engine's
    seed and the request's number."""
    logprobs: int | None = None
    """Report each drawn token's log probability and this many top alternatives."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt: callers who must not
    learn from timing what others asked get one each."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        checks: list[tuple[bool, str, object, str]] = [
            (
                self.max_tokens is None or self.max_tokens >= 1,
                "max_tokens",
                self.max_tokens,
                "at least 1, or None",
            ),
            (self.min_tokens >= 0, "min_tokens", self.min_tokens, "at least 0"),
            (
                0.0 <= self.temperature < float("inf"),
                "temperature",
                self.temperature,
                "0 (greedy) or a positive number",
            ),
            (self.top_k >= 0, "top_k", self.top_k, "0 (off) or at least 1"),
            (0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1"),
            (0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1"),
            (
                0.0 < self.repetition_penalty < float("inf"),
                "repetition_penalty",
                self.repetition_penalty,
                "above 0 (1 is off)",
            ),
            (
                -2.0 <= self.presence_penalty <= 2.0,
                "presence_penalty",
                self.presence_penalty,
                "between -2 and 2",
            ),
            (
                -2.0 <= self.frequency_penalty <= 2.0,
                "frequency_penalty",
                self.frequency_penalty,
                "between -2 and 2",
            ),
            (
                all(isinstance(s, str) and s for s in self.stop),
                "stop",
                self.stop,
                "non-empty strings",
            ),
            (self.n >= 1, "n", self.n, "at least 1"),
            (
                self.seed is None or -(2**63) <= self.seed < 2**63,
                "seed",
                self.seed,
                "a 64-bit integer or None",
            ),
            (
                self.logprobs is None or self.logprobs >= 0,
                "logprobs",
                self.logprobs,
                "at least 0, or None",
            ),
            (
                self.prompt_logprobs is None or self.prompt_logprobs >= 0,
                "prompt_logprobs",
                self.prompt_logprobs,
                "at least 0, or None",
            ),
        ]
        for valid, name, value, expected in checks:
            if not valid:
                raise InvalidRequestError(f"SamplingParams.{name}={value!r}: expected {expected}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"SamplingParams.min_tokens={self.min_tokens} is larger than "
                f"max_tokens={self.max_tokens}: lower the one or raise the other"
            )
        for token, value in self.logit_bias.items():
            if not isinstance(token, int) or token < 0 or value != value:
                raise InvalidRequestError(
                    f"SamplingParams.logit_bias[{token!r}]={value!r}: expected token ids "
                    "(integers from 0) with numbers"
                )

    @property
    def has_penalties(self) -> bool:
        """True when the sampler needs the tokens seen so far."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one position: of the token that stands there, and of the likeliest."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened to one sample, in seconds of the engine's clock."""

    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    finished_s: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    num_cached_tokens: int = 0
    """Prompt tokens that were found computed when the sample was first admitted."""

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
    """Why the finish reason is "error", in a sentence."""

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the drawn tokens' log probabilities, when they were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True)
class Output:
    """What comes back for one prompt. The plain attributes are those of the first sample."""

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
        """True when every sample has a finish reason."""
        return all(sample.finish_reason is not None for sample in self.samples)


class Status(Enum):
    """Where a request stands. PREEMPTED requests wait like new ones but keep their tokens."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(eq=False)
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
    """Tokens whose keys and values are in the cache."""
    num_inflight_tokens: int = 0
    """Tokens submitted to the runner and not yet collected."""
    num_pending_tokens: int = 0
    """Tokens being drawn by a step in flight: they stand behind `token_ids`, and only the device
    knows which they are."""
    pending_row: int = 0
    """Where the pending token stands among those that its step draws."""
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Tokens found computed at the first admission: a prefix hit, or another sample's prompt."""
    leader: Request | None = None
    """The first sample of the same prompt, whose computed prompt this one shares."""
    num_ever_computed: int = 0
    """Most tokens that were ever computed: what lies below it and is computed again is waste."""
    error: str | None = None
    """Why the finish reason is "error", in a sentence."""
    cause: BaseException | None = None
    """The exception behind `error`, where there was one."""
    priority: int = 0
    """A smaller number goes first where `scheduling.order` is "priority"."""
    arrival_number: int = 0
    """Requests are numbered as they are queued: between equals the smaller number goes first."""
    predicted_tokens: float | None = None
    """Predicted output tokens, where the order of the queue asks for lengths."""
    found_tokens: int = 0
    """Tokens found computed when the queue was last ranked, where its order asks for prefixes."""
    waiting_since_s: float = 0.0
    waited_s: float = 0.0
    """Seconds in the queue so far, the current wait not included."""
    urgent: bool = False
    """Waited for `scheduling.starvation_limit_s`: from now on only arrival counts."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)

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
        """Tokens, known or pending, neither computed nor in flight: the one subtraction of the
        scheduler. The token that makes a request as long as it may get is never computed."""
        if not self.num_pending_tokens:
            return len(self.token_ids) - self.num_computed_tokens - self.num_inflight_tokens
        tokens = min(self.num_coming_tokens, self.max_len - 1)
        return tokens - self.num_computed_tokens - self.num_inflight_tokens

    @property
    def cache_namespace(self) -> tuple[str, ...]:
        """What, besides the tokens, must be equal for two requests to share pages."""
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
        )
