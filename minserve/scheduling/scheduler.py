"""One token-centric scheduler: iteration-level batching with a token budget.

There is no prefill phase and no decode phase. Each step, every running request may compute tokens
it has and has not computed; what is left of the budget goes to waiting requests. Chunked prefill,
mixed batches and resumption after preemption are that one subtraction. Orca (Yu et al., OSDI 2022),
vLLM (arXiv 2309.06180), Sarathi-Serve (arXiv 2403.02310). Who goes first, who may join, what a step
computes first and whose pages go are small objects of their own: `order`, `policy`, `turns` and
`victims`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request, Status
from minserve.scheduling.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.order import ORDERS, Order
from minserve.scheduling.policy import POLICIES, AdmissionError, ContinuousBatching, Policy, Room
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.turns import TURNS, Budget, Turn, is_writing
from minserve.scheduling.victims import VICTIMS
from minserve.scheduling.waiting import Rank, WaitingQueue


@dataclass
class StepPlan:
    """Who computes how many tokens in one step; pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens each request computes, behind those computed or in flight."""
    preempted: list[Request] = field(default_factory=list)
    waits: bool = False
    """Whoever has to give way is in flight: nobody behind the one that needs its pages computes
    anything until that step is collected."""
    idle_places: int = 0
    """Places of a static batch whose request has left it (`Policy.idle_places`)."""


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
        self._num_added = 0
        self.waiting = WaitingQueue(self._order, scheduling.starvation_limit_s)
        self.running: list[Request] = []
        """First come, first served, in order of admission; otherwise in order of rank."""

    @property
    def has_requests(self) -> bool:
        """True while anybody runs or waits."""
        return bool(self.running or self.waiting or self._samples)

    @property
    def num_waiting(self) -> int:
        """Requests without a place, those waiting for their first sample included."""
        return len(self.waiting) + (len(self._samples) if self._samples else 0)

    def stranded_slots(self) -> int:
        """External fragmentation as the first waiting request sees it."""
        return self._memory.stranded_slots(self.waiting[0]) if self.waiting else 0

    def add(self, request: Request) -> None:
        """Queue a new request."""
        request.arrival_number = self._num_added
        self._num_added += 1
        if self._order.needs_lengths and request.predicted_tokens is None:
            request.predicted_tokens = self._predictor.predict(request)
        # Scored prompts are computed by each sample for itself.
        scored = request.params.prompt_logprobs is not None
        if self._samples is None or scored or not self._samples.add(request):
            self.waiting.push(request, request.arrival_s)

    def remove(self, request: Request) -> None:
        """Take a finished or aborted request out, wherever it stands, and free its pages."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif self._samples is None or not self._samples.remove(request):
            self.waiting.remove(request)
        request.status = Status.FINISHED
        self._memory.release(request)

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        """Decide the next step and reserve its pages. `now_s` is the engine's clock."""
        plan = StepPlan()
        if self._samples:
            for request in self._samples.ready():
                self.waiting.push(request, request.arrival_s)
        self._line_up(plan, now_s)
        limit = self._max_num_batched_tokens
        tokens = min(limit, self._policy.budget(limit, self.running, self.waiting))
        budget = Budget(tokens, self._max_num_prefill_tokens)
        num_displaced = len(plan.preempted)
        for turn in self._turns:
            if plan.waits or (turn is Turn.ALONE and plan.requests):
                break
            # After a preemption for pages, admitting somebody now would only take turns.
            if turn is Turn.WAITING and len(plan.preempted) == num_displaced:
                self._admit_waiting(plan, budget, now_s)
            elif turn is not Turn.WAITING:
                self._schedule_running(plan, budget, self._whose(turn), now_s)
        plan.idle_places = self._policy.idle_places(self.running)
        return plan

    @property
    def has_plain_budget(self) -> bool:
        """True when the policy leaves the token budget alone, so that steps without waiting
        requests need not ask it."""
        return type(self._policy).budget is ContinuousBatching.budget

    def _line_up(self, plan: StepPlan, now_s: float) -> None:
        """Bring the queue and the running requests in order, where ranks change meanwhile."""
        self.waiting.promote(now_s)
        if type(self._order) is Order:
            return  # Order of arrival, which is the order of admission.
        if self._order.needs_prefixes and len(self.running) < self._max_num_seqs:
            for request in self.waiting:
                request.found_tokens = self._memory.computed_tokens(request)
            self.waiting.rank_anew()
        self.running.sort(key=self._key)
        if self.waiting and self._order.preemptive:
            self._displace(plan, now_s)

    def _key(self, request: Request) -> tuple[Rank, int]:
        return self.waiting.rank_of(request), request.arrival_number

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
        """Reserve pages, preempting whoever is neither in the plan nor before `request` in line.
        False when `request` itself had to go, or has to let this step pass: what somebody computes
        in a step in flight is never thrown away, so the plan `waits` for a victim's."""
        # Beyond what is committed, so room for what is in flight is asked for again.
        while not self._memory.reserve(request, request.num_inflight_tokens + count):
            planned = set(plan.requests)
            behind = self.running[self.running.index(request) :]
            victim = self._pick_victim([one for one in behind if one not in planned])
            if victim is request and any(one in planned for one in behind):
                # Those behind it took their turn first. They will need pages too, and then have
                # to give way: nothing is gained by losing its own.
                return False
            if victim.num_inflight_tokens:
                plan.waits = True
                return False
            self._preempt(victim, now_s)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: Request, now_s: float) -> None:
        """The pages go, to the host or for good; the tokens stay known."""
        self.running.remove(victim)
        if not (self._swaps and self._memory.swap_out(victim)):
            self._memory.release(victim)
            victim.num_computed_tokens = 0
        victim.status = Status.PREEMPTED
        victim.num_preemptions += 1
        self.waiting.push(victim, now_s)

    def _displace(self, plan: StepPlan, now_s: float) -> None:
        """Make running requests give way to waiting ones of a strictly better rank, as far as this
        step's tokens go, and only where that makes enough room."""
        room = self._room()
        places = self._max_num_seqs - len(self.running)
        memory = self._memory
        blocks = memory.pool.num_available - room.promised_blocks - self._watermark_blocks
        tokens = self._max_num_batched_tokens - len(self.running)
        for request in list(islice(self.waiting, self._max_num_seqs)):
            needed, rank = memory.needed_blocks(request), self._rank(request)
            worse = [one for one in self.running if self._rank(one) > rank]
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
        return self.waiting.rank_of(request)

    def _room(self) -> Room:
        return Room(
            self.running, self.waiting, self._max_num_seqs, self._memory, self._watermark_blocks
        )

    def _admit_waiting(self, plan: StepPlan, budget: Budget, now_s: float) -> None:
        while self.waiting and budget.tokens > 0 and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
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
            self.waiting.pop(now_s)
            self._admit(request, budget, plan)

    def _admit(self, request: Request, budget: Budget, plan: StepPlan) -> None:
        """Give a waiting request its place, and what is already computed of it."""
        request.num_computed_tokens = self._memory.admit(request)
        if request.first_scheduled_s is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.status = Status.RUNNING
        self.running.append(request)
        # A page that was counted on may turn out damaged: then there is more to compute.
        count = self._chunk(request, request.num_uncomputed_tokens, budget)
        if count and self._memory.reserve(request, count):
            plan.requests.append(request)
            plan.num_tokens.append(count)
            budget.take(request, count)
