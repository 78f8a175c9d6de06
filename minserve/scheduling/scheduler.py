"""One token-centric scheduler: iteration-level batching with a token budget.

There is no prefill phase and no decode phase. In each step, every running request may compute
tokens that it knows and has not computed yet; the rest of the budget goes to waiting requests.
Chunked prefill, mixed batches and resumption after preemption are all this one subtraction. Orca
(Yu et al., OSDI 2022), vLLM (arXiv 2309.06180), Sarathi-Serve (arXiv 2403.02310). Small objects,
the fields of `Policies`, decide which request goes first (`order`), which may join (`batching`),
what a step computes first (`turns`) and which request is preempted (`victim`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from contextlib import suppress

from minserve.config import ResolvedConfig
from minserve.draft import Draft
from minserve.memory import Found, KVManager
from minserve.request import Request, Status
from minserve.scheduling.answers import checked_count, checked_flag
from minserve.scheduling.plan import NO_DRAFTS, StepPlan
from minserve.scheduling.policies.batching import AdmissionError, BatchingPolicy
from minserve.scheduling.policies.chosen import Policies
from minserve.scheduling.policies.queueing import QueuePolicy
from minserve.scheduling.policies.turns import Budget, Turn
from minserve.scheduling.preemption import Preemption
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.waiting import Rank


class Scheduler(Preemption):
    """Schedules running requests before waiting ones, both in the order named by
    `scheduling.order`. A preemptive order puts running and waiting requests in one line
    (`turns`)."""

    def __init__(self, config: ResolvedConfig, memory: KVManager, policies: Policies) -> None:
        super().__init__(config, memory, policies)
        scheduling = config.config.scheduling
        self._max_num_prefill_tokens = scheduling.max_num_prefill_tokens
        # Without a cache or without chunking, all tokens of a request are computed in one step.
        self._whole = not scheduling.enable_chunked_prefill or not config.config.memory.kv_cache

    def schedule(self, now_s: float = 0.0, drafts: Mapping[Request, Draft] = NO_DRAFTS) -> StepPlan:
        """Decide the next step and reserve its pages. `now_s` is the engine's clock.

        `drafts` are tokens proposed after the newest one of decoding requests. They get what is
        left of the budget and of the free pages, so that no request waits for them.

        If this raises, `culprit` is the request to end. All others are still queued or running and
        keep their pages: the next call plans again.
        """
        plan = StepPlan()
        if self._samples:
            self._queue_samples(self._samples)
        self._line_up(plan, now_s)
        budget = self._step_budget()
        num_displaced, num_leading = len(plan.preempted), 0
        for turn in self._policies.turns:
            if plan.waits or (turn is Turn.ALONE and len(plan.requests) > num_leading):
                break
            if turn is Turn.LEADING:
                self._schedule_running(plan, budget, self._leading(), now_s)
                num_leading = len(plan.requests)
            elif turn in (Turn.RANKED, Turn.CATCHING_UP):
                self._schedule_ranked(plan, budget, self._whose(turn), now_s, num_displaced)
            # After a preemption for pages, an admission now would only swap the two.
            elif turn is Turn.WAITING and len(plan.preempted) == num_displaced:
                self._admit_waiting(plan, budget, now_s)
            elif turn is not Turn.WAITING:
                whose = self._whose(turn)
                if num_leading:
                    whose = [one for one in whose if one not in plan.requests[:num_leading]]
                self._schedule_running(plan, budget, whose, now_s)
        self.culprit = None
        if drafts and not plan.waits:
            self._add_drafts(plan, drafts, budget)
        self._left_waiting = bool(self.waiting)
        idle = self._policies.batching.idle_places(self.running)
        plan.idle_places = checked_count(self._policies.batching, "idle_places", idle)
        return plan

    def _add_drafts(self, plan: StepPlan, drafts: Mapping[Request, Draft], budget: Budget) -> None:
        """Give the rest of the step to the drafts of planned requests, in their order."""
        for index, request in enumerate(plan.requests):
            draft = drafts.get(request)
            if draft is not None and request.is_decoding:
                self.culprit = request
                draft = draft.within(len(draft), budget.tokens)
                # Tokens in flight come first: recomputation can be in flight up to the newest one.
                missing = request.num_inflight_tokens + 1 + len(draft)
                if len(draft) and self._memory.reserve(request, missing):
                    plan.add_draft(index, draft)
                    budget.tokens -= len(draft)
        self.culprit = None

    def _queue_samples(self, samples: SampleGroups) -> None:
        """Queue samples whose prompt is computed now."""
        for request in samples.ready():
            self.culprit = request
            self.waiting.push(request, request.arrival_s)
            samples.remove(request)

    def _step_budget(self) -> Budget:
        """The tokens that the policy allows for this step."""
        self.culprit = None
        limit = self._max_num_batched_tokens
        tokens = self._policies.batching.budget(limit, self.running, self.waiting)
        tokens = min(limit, checked_count(self._policies.batching, "budget", tokens))
        return Budget(tokens, self._max_num_prefill_tokens)

    @property
    def has_plain_budget(self) -> bool:
        """True if the policy does not change the token budget, so that steps without waiting
        requests need not call it."""
        return type(self._policies.batching).budget is BatchingPolicy.budget

    def _line_up(self, plan: StepPlan, now_s: float) -> None:
        """Sort queue and running requests again if ranks can change between steps."""
        self.culprit = None
        self.waiting.promote(now_s)
        if type(self._order) is QueuePolicy:
            return  # Order of arrival, which is the order of admission.
        if self._order.needs_prefixes and len(self.running) < self._max_num_seqs:
            for request in self.waiting:
                self.culprit = request
                self.waiting.entry(request).found_tokens = self._memory.find(request).num_tokens
            self.waiting.rank_anew(self._rank)
        rank_of, entry = self.waiting.rank_of, self.waiting.entry
        keys = {}
        for request in self.running:
            self.culprit = request
            keys[request] = (rank_of(request), entry(request).arrival_number)
        self._keys = keys
        self.running.sort(key=self._keys.__getitem__)
        if self.waiting and self._order.preemptive:
            self._displace(plan, now_s)

    def _whose(self, turn: Turn) -> list[Request]:
        if turn in (Turn.RUNNING, Turn.RANKED):
            return list(self.running)
        decodes = turn is Turn.DECODE
        return [request for request in self.running if request.is_decoding == decodes]

    def _leading(self) -> list[Request]:
        """Decoding requests that rank before every prompt, running or waiting."""
        decoding = self._whose(Turn.DECODE)
        prefilling = [one for one in self._whose(Turn.PREFILL) if one.num_uncomputed_tokens]
        ranks = [self._keys[request][0] for request in prefilling]
        if self.waiting:
            ranks.append(self.waiting.rank_in_line(self.waiting[0]))
        if not ranks:
            return decoding
        first = min(ranks)
        return [request for request in decoding if self._keys[request][0] < first]

    def _schedule_running(
        self, plan: StepPlan, budget: Budget, requests: Sequence[Request], now_s: float
    ) -> None:
        for request in requests:
            if plan.waits:
                return
            if request.status is not Status.RUNNING:
                continue  # Preempted by a request before it.
            self.culprit = request
            count = self._chunk(request, request.num_uncomputed_tokens, budget)
            if count and self._make_room(request, count, plan, now_s):
                plan.requests.append(request)
                plan.num_tokens.append(count)
                budget.take(request, count)

    def _schedule_ranked(
        self,
        plan: StepPlan,
        budget: Budget,
        requests: Sequence[Request],
        now_s: float,
        num_displaced: int,
    ) -> None:
        """Running requests and the queue as one line, by rank; between equal ranks,
        running requests first.

        Reserves one token of the budget for each decoding request, so that a prompt takes only
        what they leave, however good its rank. If prompts are not split, that is impossible:
        only rank counts.
        """
        if self._schedule_all(plan, budget, requests, now_s):
            return
        decodes = [request.is_decoding for request in requests]
        rows = 0 if self._whole else sum(decodes)
        # After a preemption for pages, an admission now would only swap the two.
        admits, at = len(plan.preempted) == num_displaced, 0
        while at < len(requests):
            budget.rows = rows
            if admits and self.waiting:
                rank = self._keys[requests[at]][0]
                admits = self._admit_waiting(plan, budget, now_s, before=rank)
            stop = self._next_stop(requests, decodes, at, admits)
            if decodes[at]:
                rows = max(0, rows - (stop - at))
                budget.rows = 0  # The reserved tokens are for these requests.
            self._schedule_running(plan, budget, requests[at:stop], now_s)
            if plan.waits:
                return
            admits = admits and len(plan.preempted) == num_displaced
            at = stop
        self._note_stalls(plan, requests, now_s)
        if admits:
            self._admit_waiting(plan, budget, now_s)

    def _schedule_all(
        self, plan: StepPlan, budget: Budget, requests: Sequence[Request], now_s: float
    ) -> bool:
        """Fast path: if no request can be admitted and the budget covers all, rank does not matter.

        Returns False, and schedules nothing, in any other case.
        """
        can_join = self.waiting and len(self.running) < self._max_num_seqs
        if can_join or budget.prefill_tokens is not None or self.waiting.stalled:
            return False
        counts = [request.num_uncomputed_tokens for request in requests]
        if sum(counts) > budget.tokens:
            return False
        for request, count in zip(requests, counts, strict=True):
            if plan.waits:
                break
            if count and request.status is Status.RUNNING:
                self.culprit = request
                if self._make_room(request, count, plan, now_s):
                    plan.requests.append(request)
                    plan.num_tokens.append(count)
                    budget.tokens -= count
        return True

    def _next_stop(
        self, requests: Sequence[Request], decodes: Sequence[bool], at: int, admits: bool
    ) -> int:
        """Index after the next group: one prompt, or the decoding requests that rank before the
        first waiting request."""
        if not decodes[at]:
            return at + 1
        stop = at + 1
        first = self.waiting.rank_in_line(self.waiting[0]) if admits and self.waiting else None
        while stop < len(requests) and decodes[stop]:
            if first is not None and first < self._keys[requests[stop]][0]:
                break
            stop += 1
        return stop

    def _note_stalls(self, plan: StepPlan, requests: Sequence[Request], now_s: float) -> None:
        """Mark running requests that got no tokens in this step as stalled; unmark the others."""
        planned = set(plan.requests)
        for request in self.waiting.stalled & planned:
            self.waiting.resume(request, now_s)
        for request in requests:
            missed = request not in planned and request.status is Status.RUNNING
            if missed and request.num_uncomputed_tokens:
                self.waiting.stall(request, now_s)

    def _chunk(self, request: Request, missing: int, budget: Budget) -> int:
        """How many of a request's missing tokens this step may compute."""
        most = budget.for_request(request)
        if missing <= most:
            return missing
        return 0 if self._whole else most

    def _admit_waiting(
        self, plan: StepPlan, budget: Budget, now_s: float, before: Rank | None = None
    ) -> bool:
        """Admit waiting requests in order; with `before`, only those that rank before it.

        False if there is no room for the next one: admission then stops for this step.
        """
        while self.waiting:
            request = self.waiting[0]
            if before is not None and self.waiting.rank_in_line(request) >= before:
                return True
            if budget.tokens <= 0 or len(self.running) >= self._max_num_seqs:
                return False
            self.culprit = request
            found = self._memory.find(request)
            count = self._chunk(request, request.num_tokens - found.num_tokens, budget)
            if not count:
                return False
            answer = self._policies.batching.admits(self._admission_view(found))
            if not checked_flag(self._policies.batching, "admits", answer):
                return False
            stop = found.num_tokens + count
            if not self._memory.fits(request, num_tokens=stop, found=found):
                raise AdmissionError(
                    f"the policy admitted request {request.request_id}, whose first {count} tokens "
                    f"need {self._memory.needed_blocks(request, stop, found)} pages, and "
                    f"{self._memory.pool.num_available} are free"
                )
            self._admit(request, found, budget, plan, now_s)
        return True

    def _admit(
        self, request: Request, found: Found, budget: Budget, plan: StepPlan, now_s: float
    ) -> None:
        """Give the first waiting request a place and the tokens found in the cache. If the memory
        manager raises, the request still waits and starts again from its first token."""
        try:
            self._memory.admit(request, found)
        except BaseException:
            request.num_computed_tokens = 0
            with suppress(Exception):  # The first error is the one to report.
                self._memory.release(request)
            raise
        self._give_place(request)
        self.waiting.pop(now_s)
        if request.first_scheduled_s is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.status = Status.RUNNING
        # A page found in the cache may turn out to be damaged: then there is more to compute.
        count = self._chunk(request, request.num_uncomputed_tokens, budget)
        if count and self._memory.reserve(request, count):
            plan.requests.append(request)
            plan.num_tokens.append(count)
            budget.take(request, count)

    def _give_place(self, request: Request) -> None:
        """Append to `running`, or insert by rank if the order preempts: the last in this list is
        preempted first."""
        if not self._order.preemptive:
            self.running.append(request)
            return
        number = self.waiting.entry(request).arrival_number
        self._keys[request] = (self.waiting.rank_in_line(request), number)
        insort(self.running, request, key=self._keys.__getitem__)
