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


@dataclass
class StepPlan:
    """Who computes how many tokens in one step; pages are already reserved."""

    requests: list[Request] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Tokens each request computes, from its `num_computed_tokens` on."""
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    """First come, first served; running requests before waiting ones."""

    def __init__(self, config: ResolvedConfig, memory: KVManager) -> None:
        self._memory = memory
        self._max_num_seqs = config.config.scheduling.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._static = config.config.scheduling.policy == "static"
        self._open_places = 0
        """Static batching: how many more requests may join the batch that is being formed."""
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
        budget, index = self._max_num_batched_tokens, 0
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
        # Pages that chunked prompts will still ask for are spoken for.
        promised = sum(
            max(0, self._memory.missing_blocks(request, request.num_tokens))
            for request in self.running
        )
        while self.waiting and budget and len(self.running) < self._max_num_seqs:
            if self._static and not self._join_static_batch():
                return
            request = self.waiting[0]
            count = self._chunk(request, budget)
            needed = self._memory.blocks_for(request.num_tokens)
            reserve = promised + self._watermark_blocks if self.running else 0
            if not count:
                return
            if needed + reserve > self._memory.pool.num_free:
                self._open_places = 0
                return
            self.waiting.popleft()
            self._open_places -= 1
            self._memory.admit(request)
            self._memory.reserve(request, count)
            request.status = Status.RUNNING
            self.running.append(request)
            plan.requests.append(request)
            plan.num_tokens.append(count)
            promised += max(0, self._memory.missing_blocks(request, request.num_tokens))
            budget -= count

    def _join_static_batch(self) -> bool:
        """A new batch opens for whoever waits when nobody runs any more; with a small token budget
        its prompts take several steps to get in."""
        if not self.running:
            self._open_places = min(len(self.waiting), self._max_num_seqs)
        return self._open_places > 0
