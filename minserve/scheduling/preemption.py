"""Which running request gives way: when pages run out, and to a waiting one of better rank.

A victim loses its place and its pages, to the host or for good, and waits again with the tokens it
knows. What a step in flight computes is never thrown away: the plan then `waits` for that step.
"""

from __future__ import annotations

from itertools import islice

from minserve.config import ResolvedConfig
from minserve.memory import KVManager
from minserve.request import Request, Status
from minserve.scheduling.books import Books
from minserve.scheduling.plan import StepPlan
from minserve.scheduling.policies.batching import AdmissionView
from minserve.scheduling.policies.chosen import Policies
from minserve.scheduling.waiting import Rank

Key = tuple[Rank, int]
"""Rank, then arrival."""


class Preemption(Books):
    """Books in which running requests give way."""

    def __init__(self, config: ResolvedConfig, memory: KVManager, policies: Policies) -> None:
        super().__init__(config, memory, policies)
        scheduling = config.config.scheduling
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._watermark_blocks = int(config.config.memory.watermark * memory.pool.num_blocks)
        self._swaps = scheduling.preemption == "swap"
        self._keys: dict[Request, Key] = {}
        """Of running requests, as of this step; where only arrival counts, nothing."""

    def _make_room(self, request: Request, count: int, plan: StepPlan, now_s: float) -> bool:
        """Reserve pages, preempting requests that are neither in the plan nor before `request` in
        line. False when `request` itself had to go, or has to let this step pass: what is computed
        in a step in flight is never thrown away, so the plan `waits` for a victim in flight."""
        # Beyond what is committed, so room for what is in flight is asked for again.
        while not self._memory.reserve(request, request.num_inflight_tokens + count):
            planned = set(plan.requests)
            behind = self.running[self.running.index(request) :]
            victim = self._policies.victim([one for one in behind if one not in planned])
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
        """Pages that it has alone, and those that it is still promised."""
        missing = self._memory.missing_blocks(victim, victim.num_coming_tokens)
        return self._memory.returned_blocks(victim) + max(0, missing)

    def _rank(self, request: Request) -> Rank:
        self.culprit = request
        return self.waiting.rank_of(request)

    def _key(self, request: Request) -> Key:
        """Rank, then arrival."""
        return (self._rank(request), self.waiting.entry(request).arrival_number)

    def _admission_view(self) -> AdmissionView:
        return AdmissionView(
            self.running,
            self.waiting,
            self._max_num_seqs,
            self._memory,
            self._watermark_blocks,
            self.waiting.entry,
        )
