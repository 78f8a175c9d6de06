"""Which requests the scheduler has, and where each stands: running, waiting, or behind a sample.

Requests enter with `add` and leave with `remove`, which is right in every state that an error can
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
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.waiting import WaitingQueue


class Books:
    """The requests of one engine."""

    def __init__(self, config: ResolvedConfig, memory: KVManager, policies: Policies) -> None:
        scheduling = config.config.scheduling
        self._memory = memory
        self._policies = policies
        self._order = policies.order
        self._max_num_seqs = scheduling.max_num_seqs
        self._samples = SampleGroups() if config.config.memory.copy_on_write else None
        self._limit_s = scheduling.starvation_limit_s
        self.waiting = WaitingQueue(policies.order, self._limit_s)
        self.running: list[Request] = []
        """First come, first served, in order of admission; otherwise in order of rank."""
        self.culprit: Request | None = None
        """The request whose own values are being looked at: when `schedule` or `add` raises, ending
        this one request is enough. None where the cause belongs to all of them."""

    @property
    def has_requests(self) -> bool:
        """True while any request runs or waits."""
        return bool(self.running or self.waiting or self._samples)

    @property
    def num_waiting(self) -> int:
        """Requests without a place, those waiting for their first sample included."""
        return len(self.waiting) + (len(self._samples) if self._samples else 0)

    def stranded_slots(self) -> int:
        """External fragmentation as the first waiting request sees it."""
        return self._memory.stranded_slots(self.waiting[0]) if self.waiting else 0

    def requests(self) -> Iterator[Request]:
        """Every request that the scheduler knows, wherever it stands."""
        yield from self.running
        yield from self.waiting
        if self._samples is not None:
            yield from self._samples.followers()

    def add(self, request: Request) -> None:
        """Queue a new request. Where this raises, the request was not queued."""
        self.culprit = request
        entry = self.waiting.enter(request)
        predictor = self._policies.predictor
        if self._order.needs_lengths and entry.predicted_tokens is None:
            length = checked_length(predictor, request, predictor.predict(request))
            entry.predicted_tokens = length
        # Scored prompts are computed by each sample for itself.
        scored = request.params.prompt_logprobs is not None
        if self._samples is None or scored or not self._samples.add(request):
            self.waiting.push(request, request.arrival_s)
        self.culprit = None

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands, and free its pages. Also right for one that was
        never added, and for one that an error left between two places."""
        with suppress(ValueError):
            self.running.remove(request)
        if self._samples is not None:
            self._samples.remove(request)
        self.waiting.forget(request)
        request.status = Status.FINISHED
        self._memory.release(request)

    def check(self) -> None:
        """Verify that each request stands in one place, with the status of it. Raises
        IntegrityError."""
        check_books(self.running, self.waiting, self._samples, self._memory, self._max_num_seqs)

    def clear(self) -> None:
        """Forget all requests, whatever state the books are in. Pages are not returned: the memory
        manager is cleared by its own means."""
        self.waiting = WaitingQueue(self._order, self._limit_s)
        self.running = []
        self._samples = SampleGroups() if self._samples is not None else None
        self.culprit = None
        with suppress(Exception):  # The policy may be the caller's, and the very thing that failed.
            self._policies.batching.clear()
