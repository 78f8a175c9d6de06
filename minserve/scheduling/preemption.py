"""Which running request is preempted: when pages run out, or for a waiting one of better rank.

A victim loses its place; its pages are swapped to the host or dropped, and it waits again with
the tokens it has. Tokens that a step in flight computes are never thrown away: the plan then
`waits` for that step.
"""

from __future__ import annotations

from itertools import islice

from minserve.config import ResolvedConfig
from minserve.memory import Found, KVManager
from minserve.request import Request, Status
from minserve.scheduling.books import Books
from minserve.scheduling.plan import StepPlan
from minserve.scheduling.policies.batching import AdmissionView
from minserve.scheduling.policies.chosen import Policies
from minserve.scheduling.waiting import Rank

Key = tuple[Rank, int]
"""Rank, then arrival number."""


class Preemption(Books):
    """Adds preemption to the scheduler's request lists."""

    def __init__(self, config: ResolvedConfig, memory: KVManager, policies: Policies) -> None:
        super().__init__(config, memory, policies)
        scheduling = config.config.scheduling
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._watermark_blocks = int(config.config.memory.watermark * memory.pool.num_blocks)
        self._swaps = scheduling.preemption == "swap"
        self._keys: dict[Request, Key] = {}
        """Keys of running requests in this step; empty if only arrival counts."""

    def _make_room(self, request: Request, count: int, plan: StepPlan, now_s: float) -> bool:
        """Reserve pages for `request`, preempting requests after it that are not in the plan.

        False if `request` was preempted itself, or must skip this step. If the victim is in flight,
        the plan `waits`: tokens that a step in flight computes are never thrown away.
        """
        # `reserve` counts from the committed tokens, so tokens in flight are included again.
        while not self._memory.reserve(request, request.num_inflight_tokens + count):
            planned = set(plan.requests)
            behind = self.running[self.running.index(request) :]
            victim = self._policies.victim([one for one in behind if one not in planned])
            if victim is request and any(one in planned for one in behind):
                # Requests ranked after it had their turn first. They will need pages too and will
                # then be preempted, so it gains nothing from losing its own pages.
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
        """Swap the victim's pages to the host or drop them; it keeps its tokens. If this raises,
        the victim is the culprit and is still in `running`."""
        self.culprit = victim
        if not (self._swaps and self._memory.swap_out(victim)):
            self._memory.release(victim)
            victim.num_computed_tokens = 0
        victim.status = Status.PREEMPTED
        victim.num_preemptions += 1
        self.waiting.push(victim, now_s)
        self.running.remove(victim)

    def _displace(self, plan: StepPlan, now_s: float) -> None:
        """Preempt running requests for waiting ones of strictly better rank, as far as this step's
        tokens go, and only if that frees enough pages and places."""
        view = self._admission_view()
        places = self._max_num_seqs - len(self.running)
        memory = self._memory
        blocks = memory.pool.num_available - view.promised_blocks - self._watermark_blocks
        tokens = self._max_num_batched_tokens - len(self.running)
        for request in list(islice(self.waiting, self._max_num_seqs)):
            self.culprit = request
            needed, rank = memory.needed_blocks(request), self.waiting.rank_in_line(request)
            worse = [one for one in self.running if self._keys[one][0] > rank]
            within_reach = blocks + sum(self._blocks_freed_by(one) for one in worse)
            if tokens <= 0 or needed > within_reach:
                return
            while worse and (places < 1 or blocks < needed):
                victim = worse.pop()
                if victim.num_inflight_tokens:
                    plan.waits = True
                    return
                places += 1
                blocks += self._blocks_freed_by(victim)
                self._preempt(victim, now_s)
                plan.preempted.append(victim)
            if places < 1 or blocks < needed:
                return
            places -= 1
            blocks -= needed
            tokens -= request.num_uncomputed_tokens

    def _blocks_freed_by(self, victim: Request) -> int:
        """Unshared pages, plus pages its chunked prompt would still need."""
        missing = self._memory.missing_blocks(victim, victim.num_coming_tokens)
        return self._memory.returned_blocks(victim) + max(0, missing)

    def _rank(self, request: Request) -> Rank:
        self.culprit = request
        return self.waiting.rank_of(request)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its pages."""
        super().remove(request)
        self._keys.pop(request, None)

    def _admission_view(self, found: Found | None = None) -> AdmissionView:
        return AdmissionView(
            self.running,
            self.waiting,
            self._max_num_seqs,
            self._memory,
            self._watermark_blocks,
            self.waiting.entry,
            found,
        )
