"""Which request goes first: one small class per order, each with one method.

An order ranks requests; the scheduler decides about places, pages and tokens. A smaller rank goes
first; between equal ranks, the earlier arrival. A caller's own order needs only `rank`:
`EngineParts(order=...)`.
"""

from __future__ import annotations

import math
from typing import ClassVar

from minserve.config import OrderTraits, ResolvedConfig
from minserve.scheduling.policies.entry import QueueEntry


class QueuePolicy:
    """First come, first served: all requests have the same rank, so arrival decides.

    No waiting request is overtaken, so none starves.
    """

    preemptive: ClassVar[bool] = False
    """True: a waiting request that ranks strictly before a running one takes its tokens, and if
    there is no room, its place and pages. `rank` is called for running requests at every step."""
    needs_lengths: ClassVar[bool] = False
    """True: `QueueEntry.predicted_tokens` is filled in before `rank` is called."""
    needs_prefixes: ClassVar[bool] = False
    """True: before every step with a free place, `QueueEntry.found_tokens` of all waiting requests
    is updated and the queue is ranked again."""

    def rank(self, entry: QueueEntry) -> float:
        """A number, not NaN; smaller goes first.

        Called when a request joins the queue and, if `preemptive`, for running requests at every
        step. A waiting request's rank is computed once, unless `needs_prefixes`.
        """
        return 0.0

    def traits(self) -> OrderTraits:
        """What the compatibility rules must know of this order."""
        return OrderTraits(
            name=f"the order {type(self).__name__}",
            preemptive=self.preemptive,
            needs_lengths=self.needs_lengths,
            needs_prefixes=self.needs_prefixes,
            overtakes=type(self).rank is not QueuePolicy.rank,
        )

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> QueuePolicy:
        """The order with the parameters from the configuration."""
        return cls()


class ShortestFirst(QueuePolicy):
    """Shortest job first by predicted output tokens; running requests are not preempted.

    With `bucket`, lengths count as equal if they fall into the same multiple of it.
    """

    needs_lengths = True

    def __init__(self, bucket: int | None = None) -> None:
        self._bucket = bucket

    def rank(self, entry: QueueEntry) -> float:
        """Predicted output tokens, or the number of their bucket."""
        length = entry.predicted_tokens or 0.0
        return length // self._bucket if self._bucket else length

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> QueuePolicy:
        """With `scheduling.length_bucket`."""
        return cls(config.config.scheduling.length_bucket)


class LongestPrefixFirst(QueuePolicy):
    """The request with the most tokens already in the cache goes first: it uses a cached prefix
    before other requests evict it (RadixAttention, Zheng et al., arXiv 2312.07104, section 3).

    Running requests are not preempted.
    """

    needs_prefixes = True

    def rank(self, entry: QueueEntry) -> float:
        """Minus the tokens found."""
        return -entry.found_tokens


class PriorityFirst(QueuePolicy):
    """By the priority that the request was sent with: a smaller number goes first, as in vLLM."""

    preemptive = True

    def rank(self, entry: QueueEntry) -> float:
        """The request's priority."""
        return entry.request.priority


class MultiLevelFeedback(QueuePolicy):
    """Skip-join multi-level feedback queue (FastServe, Wu et al., arXiv 2305.05920).

    The request with the least service goes first, so short answers overtake long ones without a
    predicted length. Service is counted in steps: one per output token, and for a prompt the share
    of a step's token budget that it takes. A request leaves level i after `quantum * 2**i` steps in
    it, and never leaves the last level. A request *skips* the levels whose quantum its prompt alone
    would use up: there it would be moved down before its first token.
    """

    preemptive = True

    def __init__(self, quantum: int = 16, prompt_tokens_per_step: int = 512, levels: int = 6):
        if quantum < 1 or prompt_tokens_per_step < 1 or levels < 1:
            raise ValueError(
                f"MultiLevelFeedback(quantum={quantum}, prompt_tokens_per_step="
                f"{prompt_tokens_per_step}, levels={levels}): expected at least 1 each"
            )
        self._quantum = quantum
        self._tokens_per_step = prompt_tokens_per_step
        self._last = levels - 1

    def rank(self, entry: QueueEntry) -> float:
        """The request's level, from 0."""
        request = entry.request
        prompt = request.num_prompt_tokens
        first = self._first_level(1 + prompt // self._tokens_per_step)
        read = min(request.num_ever_computed, prompt) // self._tokens_per_step
        served = read + request.num_output_tokens
        # Levels f, f+1, ... last quantum * 2**f * (1 + 2 + ...) steps in total.
        down = int(math.log2(served / (self._quantum << first) + 1))
        return min(first + down, self._last)

    def _first_level(self, first_token_steps: int) -> int:
        """First level whose quantum covers the prompt."""
        level = 0
        while level < self._last and self._quantum << level < first_token_steps:
            level += 1
        return level

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> QueuePolicy:
        """With `scheduling.mlfq_quantum`; a step computes one token budget's worth of a prompt."""
        return cls(config.config.scheduling.mlfq_quantum, config.max_num_batched_tokens)


ORDERS: dict[str, type[QueuePolicy]] = {
    "fcfs": QueuePolicy,
    "sjf": ShortestFirst,
    "lpm": LongestPrefixFirst,
    "priority": PriorityFirst,
    "mlfq": MultiLevelFeedback,
}
"""`scheduling.order` -> its class."""
