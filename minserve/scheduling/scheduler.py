"""One token-centric scheduler: iteration-level batching with a token budget.

There is no prefill phase and no decode phase. Each step, every running request may compute tokens
it has and has not computed; what is left of the budget goes to waiting requests. Chunked prefill,
mixed batches and resumption after preemption are that one subtraction. Orca (Yu et al., OSDI 2022),
vLLM (arXiv 2309.06180), Sarathi-Serve (arXiv 2403.02310).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request, Status
from minserve.scheduling.policy import POLICIES, AdmissionError, Policy, Room


@dataclass
class StepPlan:
    """Who computes how many tokens in one step; pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens each request computes, from its `num_computed_tokens` on."""
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    """First come, first served; running requests before waiting ones.

    `policy` stands in for the one that `scheduling.policy` names.
    """

    def __init__(
        self, config: ResolvedConfig, memory: KVManager, policy: Policy | None = None
    ) -> None:
        self._memory = memory
        self._max_num_seqs = config.config.scheduling.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._policy = policy or POLICIES[config.config.scheduling.policy]()
        self._victim = config.config.scheduling.victim
        # Without a cache, and without chunking, a request's tokens are computed in one step.
        self._whole = (
            not config.config.scheduling.enable_chunked_prefill or not config.config.memory.kv_cache
        )
        self._watermark_blocks = int(config.config.memory.watermark * memory.pool.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a finished or aborted request out, wherever it stands, and free its pages."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        request.status = Status.FINISHED
        self._memory.release(request)

    def schedule(self) -> StepPlan:
        """Decide the next step and reserve its pages."""
        plan = StepPlan()
        budget = self._schedule_running(plan)
        # After a preemption pages are short: admitting somebody now would only take turns.
        if self.waiting and not plan.preempted:
            self._admit_waiting(plan, budget)
        return plan

    def _schedule_running(self, plan: StepPlan) -> int:
        limit, index = self._max_num_batched_tokens, 0
        budget = min(limit, self._policy.budget(limit, self.running, self.waiting))
        while index < len(self.running):
            request = self.running[index]
            count = self._chunk(request, budget)
            if count and not self._make_room(request, count, index, plan):
                continue
            if count:
                plan.requests.append(request)
                plan.num_tokens.append(count)
                budget -= count
            index += 1
        return budget

    def _chunk(self, request: Request, budget: int) -> int:
        missing = request.num_uncomputed_tokens
        if missing <= budget:
            return missing
        return 0 if self._whole else budget

    def _make_room(self, request: Request, count: int, index: int, plan: StepPlan) -> bool:
        """Reserve pages, preempting from `running[index:]`, so that nobody already in the plan
        loses its place. False when `request` itself had to go."""
        while not self._memory.reserve(request, count):
            candidates = self.running[index:]
            if self._victim == "last":
                victim = candidates[-1]
            else:
                victim = min(reversed(candidates), key=lambda r: r.num_computed_tokens)
            self._preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: Request) -> None:
        """Preemption by recomputation: the pages go, the tokens stay known."""
        self.running.remove(victim)
        self._memory.release(victim)
        victim.status = Status.PREEMPTED
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.waiting.appendleft(victim)

    def _admit_waiting(self, plan: StepPlan, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
            count = self._chunk(request, budget)
            room = Room(
                self.running, self.waiting, self._max_num_seqs, self._memory, self._watermark_blocks
            )
            if not count or not self._policy.admits(room):
                return
            needed, free = self._memory.blocks_for(count), self._memory.pool.num_free
            if needed > free:
                raise AdmissionError(
                    f"the policy admitted request {request.request_id}, whose first {count} tokens "
                    f"need {needed} pages, and {free} are free"
                )
            self.waiting.popleft()
            self._memory.admit(request)
            self._memory.reserve(request, count)
            request.status = Status.RUNNING
            self.running.append(request)
            plan.requests.append(request)
            plan.num_tokens.append(count)
            budget -= count
