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
from minserve.scheduling.policies.batching import POLICIES, BatchingPolicy
from minserve.scheduling.policies.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.policies.queueing import ORDERS, QueuePolicy
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.waiting import WaitingQueue


class Books:
    """The requests of one engine.

    `policy` and `order` stand in for the ones the configuration names, `predictor` for the oracle
    of fixed lengths.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        policy: BatchingPolicy | None = None,
        order: QueuePolicy | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        scheduling = config.config.scheduling
        self._memory = memory
        self._max_num_seqs = scheduling.max_num_seqs
        self._policy = policy or POLICIES[scheduling.policy].from_config(config)
        self._order = order or ORDERS[scheduling.order].from_config(config)
        self._predictor = predictor or LengthOracle(scheduling.length_error, config.config.seed)
        self._samples = SampleGroups() if config.config.memory.copy_on_write else None
        self._limit_s = scheduling.starvation_limit_s
        self._num_added = 0
        self.waiting = WaitingQueue(self._order, self._limit_s)
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
        request.arrival_number = self._num_added
        self._num_added += 1
        if self._order.needs_lengths and request.predicted_tokens is None:
            length = self._predictor.predict(request)
            request.predicted_tokens = checked_length(self._predictor, request, length)
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
        self.waiting.remove(request)
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
            self._policy.clear()
