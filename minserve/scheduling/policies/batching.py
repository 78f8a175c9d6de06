"""The batching policy: continuous or static.

A policy decides how many tokens a step may compute and whether the first waiting request may join
now. The scheduler decides about places, pages and order. `continuous` is Orca's iteration-level
scheduling (Yu et al., OSDI 2022), with pages that are counted instead of reserved; `static` is the
method before it. A caller can pass its own `BatchingPolicy`: `EngineParts(policy=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from minserve.config import ResolvedConfig
from minserve.memory import Found, KVManager
from minserve.request import Request
from minserve.scheduling.policies.entry import QueueEntry


class AdmissionError(RuntimeError):
    """A policy admitted a request for which there is no room. The message says what was missing."""


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """The state that a policy sees when it decides about the first waiting request."""

    running: Sequence[Request]
    """Requests that hold a place, in order of admission. Their pages for this step are
    already reserved."""
    waiting: Sequence[Request]
    """At least one request."""
    max_num_seqs: int
    memory: KVManager
    watermark_blocks: int
    """Pages to leave free while requests run (`memory.watermark`)."""
    entry_of: Callable[[Request], QueueEntry]
    """What the queue has recorded about a request."""
    found: Found | None = None
    """Where the computed tokens of the first waiting request are; None: not looked up."""

    @property
    def needed_blocks(self) -> int:
        """Pages that the first waiting request would take from the available ones for all its known
        tokens. Pages of a shared prefix that other requests hold are not counted."""
        return self.memory.needed_blocks(self.waiting[0], found=self.found)

    @property
    def promised_blocks(self) -> int:
        """Pages that running requests will still need for the rest of their chunked prompts."""
        missing = (self.memory.missing_blocks(one, one.num_coming_tokens) for one in self.running)
        return sum(max(0, blocks) for blocks in missing)

    @property
    def has_blocks(self) -> bool:
        """True if the first waiting request fits in addition to the promised pages. While no
        request runs, no page is kept back."""
        kept_back = self.promised_blocks + self.watermark_blocks if self.running else 0
        return self.memory.fits(self.waiting[0], kept_back, found=self.found)


class BatchingPolicy:
    """The scheduler calls these methods at every step; a caller's own policy
    overrides some of them."""

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> BatchingPolicy:
        """The policy with the parameters from the configuration."""
        return cls()

    def budget(self, limit: int, running: Sequence[Request], waiting: Sequence[Request]) -> int:
        """Tokens that this step may compute, at most `limit` (`max_num_batched_tokens`)."""
        return limit

    def admits(self, view: AdmissionView) -> bool:
        """May the first waiting request join now? Called only if there is a free place."""
        raise NotImplementedError(f"{type(self).__name__} has no method admits(view)")

    def idle_places(self, running: Sequence[Request]) -> int:
        """Places that are taken although no request runs in them. By default none: when a request
        leaves, its place is free."""
        return 0

    def clear(self) -> None:
        """Forget all requests: the engine starts again after an error damaged its state."""


class ContinuousBatching(BatchingPolicy):
    """A waiting request joins at any step in which there is room."""

    def admits(self, view: AdmissionView) -> bool:
        """See `BatchingPolicy.admits`."""
        return view.has_blocks


class StaticBatching(BatchingPolicy):
    """A batch is formed when no request is running; no other request joins until its last one ends.

    With `bucket`, a batch holds only requests whose predicted lengths fall into the same multiple
    of it, so that its places become free at about the same time.
    """

    def __init__(self, bucket: int | None = None) -> None:
        self._bucket = bucket
        self._open_places = 0
        self._batch: set[Request] = set()

    def admits(self, view: AdmissionView) -> bool:
        """The batch is formed once. With a small token budget, its prompts are admitted
        over several steps."""
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
        """Requests of the batch that are no longer running: finished, aborted, or preempted. A
        preempted request gets its place back."""
        return len(self._batch) - len(running)

    def clear(self) -> None:
        """Forget the batch; the next one is formed from the beginning."""
        self._open_places = 0
        self._batch = set()

    def _alike(self, view: AdmissionView) -> int:
        """Number of requests at the head of the queue that may share a batch."""
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
