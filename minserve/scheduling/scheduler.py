"""One token-centric scheduler: iteration-level batching with a token budget.

There is no prefill phase and no decode phase. Each step, every running request may compute tokens
it has and has not computed; what is left of the budget goes to waiting requests. Chunked prefill,
mixed batches and resumption after preemption are that one subtraction. Orca (Yu et al., OSDI 2022),
vLLM (arXiv 2309.06180), Sarathi-Serve (arXiv 2403.02310).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import cast

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
        self._swaps = config.config.scheduling.preemption == "swap"
        self._samples_follow = config.config.memory.copy_on_write
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._followers: dict[Request, list[Request]] = {}
        """First sample of a prompt -> the others, until they can share the prompt it computed."""

    @property
    def has_requests(self) -> bool:
        """True while anybody runs or waits."""
        return bool(self.running or self.waiting or self._followers)

    @property
    def num_waiting(self) -> int:
        """Requests without a place, those waiting for their first sample included."""
        return len(self.waiting) + sum(len(group) for group in self._followers.values())

    def stranded_slots(self) -> int:
        """External fragmentation as the first waiting request sees it."""
        return self._memory.stranded_slots(self.waiting[0]) if self.waiting else 0

    def add(self, request: Request) -> None:
        """Queue a new request."""
        leader = request.leader
        # Scored prompts are computed by each sample for itself.
        follows = self._samples_follow and request.params.prompt_logprobs is None
        if follows and leader is not None and not leader.finished:
            self._followers.setdefault(leader, []).append(request)
        else:
            self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a finished or aborted request out, wherever it stands, and free its pages."""
        group = self._followers.get(request.leader, []) if request.leader is not None else []
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request in group:
            group.remove(request)
            if not group:
                del self._followers[cast(Request, request.leader)]
        else:
            self.waiting.remove(request)
        request.status = Status.FINISHED
        self._memory.release(request)

    def _release_followers(self) -> None:
        """Let samples in whose prompt is computed now; where the first one ended before it was,
        the next one leads."""
        for leader, group in list(self._followers.items()):
            if leader.num_computed_tokens >= leader.num_prompt_tokens:
                self.waiting.extendleft(reversed(group))
            elif leader.finished:
                first, *others = group
                self.waiting.appendleft(first)
                for request in others:
                    request.leader = first
                if others:
                    self._followers[first] = others
            else:
                continue
            del self._followers[leader]

    def schedule(self) -> StepPlan:
        """Decide the next step and reserve its pages."""
        plan = StepPlan()
        if self._followers:
            self._release_followers()
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
            count = self._chunk_of(request.num_uncomputed_tokens, budget)
            if count and not self._make_room(request, count, index, plan):
                continue
            if count:
                plan.requests.append(request)
                plan.num_tokens.append(count)
                budget -= count
            index += 1
        return budget

    def _chunk_of(self, missing: int, budget: int) -> int:
        """How many of the missing tokens this step may compute."""
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
        """The pages go, to the host or for good; the tokens stay known."""
        self.running.remove(victim)
        if not (self._swaps and self._memory.swap_out(victim)):
            self._memory.release(victim)
            victim.num_computed_tokens = 0
        victim.status = Status.PREEMPTED
        victim.num_preemptions += 1
        self.waiting.appendleft(victim)

    def _admit_waiting(self, plan: StepPlan, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
            found = self._memory.computed_tokens(request)
            room = Room(
                self.running, self.waiting, self._max_num_seqs, self._memory, self._watermark_blocks
            )
            count = self._chunk_of(request.num_tokens - found, budget)
            if not count or not self._policy.admits(room):
                return
            if not self._memory.fits(request, num_tokens=found + count):
                raise AdmissionError(
                    f"the policy admitted request {request.request_id}, whose first {count} tokens "
                    f"need {self._memory.needed_blocks(request, found + count)} pages, and "
                    f"{self._memory.pool.num_available} are free"
                )
            self.waiting.popleft()
            budget -= self._admit(request, budget, plan)

    def _admit(self, request: Request, budget: int, plan: StepPlan) -> int:
        """Give a waiting request its place; returns the tokens it computes in this step."""
        request.num_computed_tokens = self._memory.admit(request)
        if request.first_scheduled_s is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.status = Status.RUNNING
        self.running.append(request)
        # A page that was counted on may turn out damaged: then there is more to compute.
        count = self._chunk_of(request.num_uncomputed_tokens, budget)
        if not count or not self._memory.reserve(request, count):
            return 0
        plan.requests.append(request)
        plan.num_tokens.append(count)
        return count
