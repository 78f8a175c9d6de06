"""The requests of the scheduler and their state: running, waiting, or waiting for another sample.

Requests enter with `add` and leave with `remove`. `remove` works in every state that an error can
leave behind. What a step computes is decided in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request, Status
from minserve.scheduling.answers import checked_length
from minserve.scheduling.audit import check_books
from minserve.scheduling.policies.chosen import Policies
from minserve.scheduling.policies.entry import QueueEntry
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.waiting import WaitingQueue


class Books:
    """The scheduler's lists of requests ("books") for one engine."""

    def __init__(self, config: ResolvedConfig, memory: KVManager, policies: Policies) -> None:
        scheduling = config.config.scheduling
        self._memory = memory
        self._policies = policies
        self._order = policies.order
        self._max_num_seqs = scheduling.max_num_seqs
        self._max_queued = scheduling.max_queued_requests
        self._samples = SampleGroups() if config.config.memory.copy_on_write else None
        self._limit_s = scheduling.starvation_limit_s
        self.waiting = WaitingQueue(policies.order, self._limit_s)
        self.running: list[Request] = []
        """In order of admission if the order is first come, first served; otherwise
        in order of rank."""
        self._left_waiting = False
        """True if the last step left requests waiting."""
        self.culprit: Request | None = None
        """The request being handled: if `schedule` or `add` raises, it is enough to end this
        request. None if the cause belongs to all of them."""

    @property
    def has_requests(self) -> bool:
        """True while any request runs or waits."""
        return bool(self.running or self.waiting or self._samples)

    @property
    def num_waiting(self) -> int:
        """Requests without a place, including samples that wait for their first sample."""
        return len(self.waiting) + (len(self._samples) if self._samples else 0)

    @property
    def is_full(self) -> bool:
        """True if no newcomer may join the queue (`scheduling.max_queued_requests`).

        Requests count that wait beyond the free places. No place is free while the last step left
        a request waiting: then pages, the token budget or the policy keep the places empty.
        """
        if self._max_queued is None:
            return False
        free = 0 if self._left_waiting else self._max_num_seqs - len(self.running)
        return self.num_waiting - free >= self._max_queued

    def stranded_slots(self) -> int:
        """External fragmentation for the first waiting request, in slots."""
        return self._memory.stranded_slots(self.waiting[0]) if self.waiting else 0

    def requests(self) -> Iterator[Request]:
        """Every request that the scheduler knows, in whichever list it is."""
        yield from self.running
        yield from self.waiting
        if self._samples is not None:
            yield from self._samples.followers()

    def add(self, request: Request, since_s: float | None = None) -> None:
        """Queue a new request, which waits since `since_s` (None: since it arrived). If this
        raises, the request was not queued."""
        self.culprit = request
        since_s = request.arrival_s if since_s is None else since_s
        try:
            self._queue(request, self.waiting.enter(request), since_s)
        except BaseException:
            self.waiting.forget(request)
            raise
        self.culprit = None

    def _queue(self, request: Request, entry: QueueEntry, since_s: float) -> None:
        predictor = self._policies.predictor
        if self._order.needs_lengths and entry.predicted_tokens is None:
            length = checked_length(predictor, request, predictor.predict(request))
            entry.predicted_tokens = length
        # If its prompt is scored, each sample computes the prompt itself.
        scored = request.params.prompt_logprobs is not None
        if self._samples is None or scored or not self._samples.add(request):
            self.waiting.push(request, since_s)

    def remove(self, request: Request) -> None:
        """Take a request out of whichever list it is in, and free its pages. Also works for a
        request that was never added, and for one that an error left half-moved."""
        with suppress(ValueError):
            self.running.remove(request)
        if self._samples is not None:
            self._samples.remove(request)
        self.waiting.forget(request)
        self._left_waiting = self._left_waiting and bool(self.waiting)
        request.status = Status.FINISHED
        self._memory.release(request)

    def check(self) -> None:
        """Verify that each request is in exactly one list, with the matching status.
        Raises IntegrityError."""
        check_books(self.running, self.waiting, self._samples, self._memory, self._max_num_seqs)

    def clear(self) -> None:
        """Forget all requests, whatever state the lists are in. Does not free pages: the memory
        manager is reset separately."""
        self.waiting = WaitingQueue(self._order, self._limit_s)
        self.running = []
        self._left_waiting = False
        self._samples = SampleGroups() if self._samples is not None else None
        self.culprit = None
        with suppress(Exception):  # The policy may be the caller's, and may be what failed.
            self._policies.batching.clear()
