"""What the scheduler asks at every step, and the two answers of the literature.

A policy decides how many tokens a step may compute and whether the first waiting request may join
now; places, pages and order stay the scheduler's. `continuous` is Orca's iteration-level scheduling
(Yu et al., OSDI 2022) with pages counted instead of reserved; `static` is what came before it. Any
`BatchingPolicy` may stand in: `EngineParts(policy=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request
from minserve.scheduling.policies.entry import QueueEntry


class AdmissionError(RuntimeError):
    """A policy let a request in that has no room. The message says what was missing."""


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """What runs, what waits, and what is left for the first in line: one moment of one step."""

    running: Sequence[Request]
    """Requests that hold a place, in order of admission; pages for this step are already
    theirs."""
    waiting: Sequence[Request]
    """At least one request."""
    max_num_seqs: int
    memory: KVManager
    watermark_blocks: int
    """Pages to be left free beside running requests (`memory.watermark`)."""
    entry_of: Callable[[Request], QueueEntry]
    """What the queue knows of a request."""

    @property
    def needed_blocks(self) -> int:
        """Pages that the first waiting request takes out of those available, for every token it
        knows; fewer where it shares a prefix that others hold."""
        return self.memory.needed_blocks(self.waiting[0])

    @property
    def promised_blocks(self) -> int:
        """Pages that chunked prompts of running requests will still ask for."""
        missing = (self.memory.missing_blocks(one, one.num_coming_tokens) for one in self.running)
        return sum(max(0, blocks) for blocks in missing)

    @property
    def has_blocks(self) -> bool:
        """True where the first in line fits beside what is promised; while no request runs, no
        page is kept back."""
        kept_back = self.promised_blocks + self.watermark_blocks if self.running else 0
        return self.memory.fits(self.waiting[0], kept_back)


class BatchingPolicy:
    """What the scheduler asks at every step; a policy of the caller's own overrides some of it."""

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> BatchingPolicy:
        """The policy with the parameters that the configuration gives it."""
        return cls()

    def budget(self, limit: int, running: Sequence[Request], waiting: Sequence[Request]) -> int:
        """Tokens that this step may compute, at most `limit` (`max_num_batched_tokens`)."""
        return limit

    def admits(self, view: AdmissionView) -> bool:
        """May the first waiting request join now? Asked only where there is a free place."""
        raise NotImplementedError(f"{type(self).__name__} has no method admits(view)")

    def idle_places(self, running: Sequence[Request]) -> int:
        """Places that were given away and may not be taken yet. None: a request that leaves makes
        room for the next."""
        return 0

    def clear(self) -> None:
        """Forget all requests: the engine starts again after its books were damaged."""


class ContinuousBatching(BatchingPolicy):
    """A waiting request joins at any step in which there is room."""

    def admits(self, view: AdmissionView) -> bool:
        """May the first waiting request join now? Asked only where there is a free place."""
        return view.has_blocks


class StaticBatching(BatchingPolicy):
    """A batch is formed when no request runs any more; until its last one ends, none joins.

    With `bucket`, a batch holds only requests whose predicted lengths fall into the same multiple
    of it, so that its places empty together.
    """

    def __init__(self, bucket: int | None = None) -> None:
        self._bucket = bucket
        self._open_places = 0
        self._batch: set[Request] = set()

    def admits(self, view: AdmissionView) -> bool:
        """With a small token budget the batch's prompts take several steps to get in."""
        if not view.running:
            self._open_places = min(self._alike(view), view.max_num_seqs)
            self._batch.clear()
        if self._open_places and not view.has_blocks:
            self._open_places = 0
        joins = self._open_places > 0
        self._open_places -= joins
        if joins:
            self._batch.add(view.waiting[0])
        return joins

    def idle_places(self, running: Sequence[Request]) -> int:
        """Of the batch, requests that do not run any more: finished, aborted, or preempted. A
        preempted request that comes back gets its own place again."""
        return len(self._batch) - len(running)

    def clear(self) -> None:
        """The next batch forms from the start."""
        self._open_places = 0
        self._batch = set()

    def _alike(self, view: AdmissionView) -> int:
        """Requests at the head of the queue that may share a batch."""
        if self._bucket is None:
            return len(view.waiting)
        lengths = (view.entry_of(request).predicted_tokens or 0.0 for request in view.waiting)
        buckets = (length // self._bucket for length in lengths)
        first = next(buckets)
        return 1 + sum(1 for _ in takewhile(lambda bucket: bucket == first, buckets))

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> StaticBatching:
        """With `scheduling.length_bucket`."""
        return cls(config.config.scheduling.length_bucket)


POLICIES: dict[str, type[BatchingPolicy]] = {
    "continuous": ContinuousBatching,
    "static": StaticBatching,
}
"""`scheduling.policy` -> its class."""
