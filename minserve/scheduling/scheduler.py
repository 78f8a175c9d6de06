"""One token-centric scheduler: iteration-level batching with a token budget.

There is no prefill phase and no decode phase. Each step, every running request may compute tokens
it has and has not computed; what is left of the budget goes to waiting requests. Chunked prefill,
mixed batches and resumption after preemption are that one subtraction. Orca (Yu et al., OSDI 2022),
vLLM (arXiv 2309.06180), Sarathi-Serve (arXiv 2403.02310). Which request goes first, which may join,
what a step computes first and whose pages go are small objects of their own: `order`, `policy`,
`turns` and `victims`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request, Status
from minserve.scheduling.answers import checked_count, checked_length
from minserve.scheduling.audit import check_books
from minserve.scheduling.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.order import ORDERS, Order
from minserve.scheduling.plan import StepPlan
from minserve.scheduling.policy import POLICIES, AdmissionError, ContinuousBatching, Policy, Room
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.turns import TURNS, Budget, Turn, is_writing
from minserve.scheduling.victims import VICTIMS
from minserve.scheduling.waiting import Rank, WaitingQueue


class Scheduler:
    """Running requests before waiting ones, both in the order that `scheduling.order` names.

    `policy` and `order` stand in for the ones the configuration names, `predictor` for the oracle
    of fixed lengths.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        policy: Policy | None = None,
        order: Order | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        scheduling = config.config.scheduling
        self._memory = memory
        self._max_num_seqs = scheduling.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._max_num_prefill_tokens = scheduling.max_num_prefill_tokens
        self._policy = policy or POLICIES[scheduling.policy].from_config(config)
        self._order = order or ORDERS[scheduling.order].from_config(config)
        self._predictor = predictor or LengthOracle(scheduling.length_error, config.config.seed)
        self._turns = TURNS[scheduling.prefill]
        self._pick_victim = VICTIMS[scheduling.victim]
        # Without a cache, and without chunking, a request's tokens are computed in one step.
        self._whole = not scheduling.enable_chunked_prefill or not config.config.memory.kv_cache
        self._watermark_blocks = int(config.config.memory.watermark * memory.pool.num_blocks)
        self._swaps = scheduling.preemption == "swap"
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

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        """Decide the next step and reserve its pages. `now_s` is the engine's clock.

        Where this raises, `culprit` is the request to end. All others are still queued or running,
        with the pages they have: the next call plans again.
        """
        plan = StepPlan()
        if self._samples:
            self._queue_samples(self._samples)
        self._line_up(plan, now_s)
        budget = self._step_budget()
        num_displaced = len(plan.preempted)
        for turn in self._turns:
            if plan.waits or (turn is Turn.ALONE and plan.requests):
                break
            # After a preemption for pages, an admission now would only swap the two.
            if turn is Turn.WAITING and len(plan.preempted) == num_displaced:
                self._admit_waiting(plan, budget, now_s)
            elif turn is not Turn.WAITING:
                self._schedule_running(plan, budget, self._whose(turn), now_s)
        self.culprit = None
        idle = self._policy.idle_places(self.running)
        plan.idle_places = checked_count(self._policy, "idle_places", idle)
        return plan

    def _queue_samples(self, samples: SampleGroups) -> None:
        """Queue samples whose prompt is computed now."""
        for request in samples.ready():
            self.culprit = request
            self.waiting.push(request, request.arrival_s)
            samples.remove(request)

    def _step_budget(self) -> Budget:
        """The tokens that the policy gives this step."""
        self.culprit = None
        limit = self._max_num_batched_tokens
        tokens = self._policy.budget(limit, self.running, self.waiting)
        tokens = min(limit, checked_count(self._policy, "budget", tokens))
        return Budget(tokens, self._max_num_prefill_tokens)

    @property
    def has_plain_budget(self) -> bool:
        """True when the policy leaves the token budget alone, so that steps without waiting
        requests need not ask it."""
        return type(self._policy).budget is ContinuousBatching.budget

    def _line_up(self, plan: StepPlan, now_s: float) -> None:
        """Bring the queue and the running requests in order, where ranks change meanwhile."""
        self.culprit = None
        self.waiting.promote(now_s)
        if type(self._order) is Order:
            return  # Order of arrival, which is the order of admission.
        if self._order.needs_prefixes and len(self.running) < self._max_num_seqs:
            for request in self.waiting:
                self.culprit = request
                request.found_tokens = self._memory.computed_tokens(request)
            self.waiting.rank_anew(self._rank)
        self.running.sort(key=self._key)
        if self.waiting and self._order.preemptive:
            self._displace(plan, now_s)

    def _key(self, request: Request) -> tuple[Rank, int]:
        return self._rank(request), request.arrival_number

    def _whose(self, turn: Turn) -> Sequence[Request]:
        if turn is Turn.RUNNING:
            return list(self.running)
        writes = turn is Turn.WRITING
        return [request for request in self.running if is_writing(request) == writes]

    def _schedule_running(
        self, plan: StepPlan, budget: Budget, requests: Sequence[Request], now_s: float
    ) -> None:
        for request in requests:
            if plan.waits:
                return
            if request.status is not Status.RUNNING:
                continue  # Preempted by one before it.
            self.culprit = request
            count = self._chunk(request, request.num_uncomputed_tokens, budget)
            if count and self._make_room(request, count, plan, now_s):
                plan.requests.append(request)
                plan.num_tokens.append(count)
                budget.take(request, count)

    def _chunk(self, request: Request, missing: int, budget: Budget) -> int:
        """How many of a request's missing tokens this step may compute."""
        most = budget.for_request(request)
        if missing <= most:
            return missing
        return 0 if self._whole else most

    def _make_room(self, request: Request, count: int, plan: StepPlan, now_s: float) -> bool:
        """Reserve pages, preempting requests that are neither in the plan nor before `request` in
        line. False when `request` itself had to go, or has to let this step pass: what is computed
        in a step in flight is never thrown away, so the plan `waits` for a victim in flight."""
        # Beyond what is committed, so room for what is in flight is asked for again.
        while not self._memory.reserve(request, request.num_inflight_tokens + count):
            planned = set(plan.requests)
            behind = self.running[self.running.index(request) :]
            victim = self._pick_victim([one for one in behind if one not in planned])
            if victim is request and any(one in planned for one in behind):
                # Requests behind it took their turn first. They will need pages too, and then have
                # to give way: nothing is gained by losing its own.
                return False
            if victim.num_inflight_tokens:
                plan.waits = True
                return False
            self._preempt(victim, now_s)
            plan.preempted.append(victim)
            if victim is request:
                return False
            self.culprit = request
        return True

    def _preempt(self, victim: Request, now_s: float) -> None:
        """The pages go, to the host or for good; the tokens stay known. Where this raises, the
        victim is the culprit and still among the running."""
        self.culprit = victim
        if not (self._swaps and self._memory.swap_out(victim)):
            self._memory.release(victim)
            victim.num_computed_tokens = 0
        victim.status = Status.PREEMPTED
        victim.num_preemptions += 1
        self.waiting.push(victim, now_s)
        self.running.remove(victim)

    def _displace(self, plan: StepPlan, now_s: float) -> None:
        """Make running requests give way to waiting ones of a strictly better rank, as far as this
        step's tokens go, and only where that makes enough room."""
        room = self._room()
        places = self._max_num_seqs - len(self.running)
        memory = self._memory
        blocks = memory.pool.num_available - room.promised_blocks - self._watermark_blocks
        tokens = self._max_num_batched_tokens - len(self.running)
        for request in list(islice(self.waiting, self._max_num_seqs)):
            rank = self._rank(request)
            worse = [one for one in self.running if self._rank(one) > rank]
            self.culprit = request
            needed = memory.needed_blocks(request)
            within_reach = blocks + sum(memory.returned_blocks(one) for one in worse)
            if tokens <= 0 or needed > within_reach:
                return
            while worse and (places < 1 or blocks < needed):
                victim = worse.pop()
                if victim.num_inflight_tokens:
                    plan.waits = True
                    return
                places += 1
                blocks += memory.returned_blocks(victim)
                self._preempt(victim, now_s)
                plan.preempted.append(victim)
            if places < 1 or blocks < needed:
                return
            places -= 1
            blocks -= needed
            tokens -= request.num_uncomputed_tokens

    def _rank(self, request: Request) -> Rank:
        self.culprit = request
        return self.waiting.rank_of(request)

    def _room(self) -> Room:
        return Room(
            self.running, self.waiting, self._max_num_seqs, self._memory, self._watermark_blocks
        )

    def _admit_waiting(self, plan: StepPlan, budget: Budget, now_s: float) -> None:
        while self.waiting and budget.tokens > 0 and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
            self.culprit = request
            found = self._memory.computed_tokens(request)
            count = self._chunk(request, request.num_tokens - found, budget)
            if not count or not self._policy.admits(self._room()):
                return
            if not self._memory.fits(request, num_tokens=found + count):
                raise AdmissionError(
                    f"the policy admitted request {request.request_id}, whose first {count} tokens "
                    f"need {self._memory.needed_blocks(request, found + count)} pages, and "
                    f"{self._memory.pool.num_available} are free"
                )
            self._admit(request, budget, plan, now_s)

    def _admit(self, request: Request, budget: Budget, plan: StepPlan, now_s: float) -> None:
        """Give the first waiting request its place, and what is already computed of it. Where the
        memory manager raises, the request still waits, and begins again with nothing."""
        try:
            request.num_computed_tokens = self._memory.admit(request)
        except BaseException:
            request.num_computed_tokens = 0
            with suppress(Exception):  # What went wrong above is what has to be told.
                self._memory.release(request)
            raise
        self.running.append(request)
        self.waiting.pop(now_s)
        if request.first_scheduled_s is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.status = Status.RUNNING
        # A page that was counted on may turn out damaged: then there is more to compute.
        count = self._chunk(request, request.num_uncomputed_tokens, budget)
        if count and self._memory.reserve(request, count):
            plan.requests.append(request)
            plan.num_tokens.append(count)
            budget.take(request, count)
