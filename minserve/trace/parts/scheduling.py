"""What the scheduler decided in a step: requests in each state, and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import peak, summed


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepScheduling:
    """Flat fields of a step: counts of requests and tokens."""

    __slots__ = ()

    num_waiting: int = field(metadata=peak("peak_waiting"))
    """Requests waiting after scheduling, preempted ones included."""
    num_running: int = field(metadata=peak("peak_running"))
    """Requests holding a place after scheduling."""
    num_scheduled: int = field(metadata=summed("scheduled"))
    """Requests that computed something."""
    num_prefill_tokens: int = field(metadata=summed("prefill_tokens"))
    """Tokens computed that are not the request's newest one: prompt or recomputation."""
    num_decode_tokens: int = field(metadata=summed("decode_tokens"))
    """Tokens computed for requests that had caught up: their newest token, and with a draft the
    proposed tokens."""
    num_recomputed_tokens: int = field(metadata=summed("recomputed_tokens"))
    """Tokens computed that had been computed before."""
    num_sampled_tokens: int = field(metadata=summed("sampled_tokens"))
    """Tokens added to requests."""
    num_preempted: int = field(metadata=summed("preemptions"))
    num_finished: int
    num_aborted: int = field(metadata=summed("aborted"))
    """Requests aborted since the step before."""
    num_refused: int = field(default=0, kw_only=True, metadata=summed("refused"))
    """Prompts refused since the step before, because the queue was full."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return self.num_prefill_tokens + self.num_decode_tokens
