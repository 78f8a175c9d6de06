"""A scheduler and its memory without an engine: steps are planned and committed at once.

What `Engine` does with an error is not used here: `step` lets it travel to the test.
"""

from __future__ import annotations

from engine.fakes import TOKEN_BYTES, tiny_spec

from minserve.clock import VirtualClock
from minserve.config import EngineConfig, resolve
from minserve.memory import KVManager, build_manager, plan_blocks
from minserve.request import Request, SamplingParams
from minserve.scheduling import Policies, QueueEntry, Scheduler, StepPlan

PAGE = 4


class Driven:
    """`plans` are those of all steps so far; a step takes a second."""

    def __init__(
        self,
        pages: int = 16,
        *,
        order=None,
        policy=None,
        predictor=None,
        depth: int = 0,
        max_position: int = 128,
        **values,
    ) -> None:
        settings = {
            "memory.block_size": PAGE,
            "scheduling.max_num_seqs": 4,
            "scheduling.max_num_batched_tokens": 16,
            **{name.replace("__", "."): value for name, value in values.items()},
            "device": "cpu",
        }
        config = resolve(EngineConfig().with_values(settings), tiny_spec(max_position))
        self.memory: KVManager = build_manager(config, plan_blocks(config, pages), VirtualClock())
        policies = Policies.of(config, policy, order, predictor)
        self.scheduler = Scheduler(config, self.memory, policies)
        self.plans: list[StepPlan] = []
        self.in_flight: list[StepPlan] = []
        self.depth = depth
        self.requests: list[Request] = []
        self.now_s = 0.0

    def entry(self, request: Request) -> QueueEntry:
        """What the queue knows of a request that has not ended."""
        return self.scheduler.waiting.entry(request)

    def add(self, prompt: int = 8, output: int = 4, priority: int = 0, n: int = 1, **params):
        """Requests of one prompt; their tokens are numbered."""
        number = len(self.requests)
        params = SamplingParams(max_tokens=output, n=n, **params)
        tokens = [1 + (number * 31 + at) % 90 for at in range(prompt)]
        made = [
            Request(f"r{number}", tokens, params, self.now_s, 0, i, prompt + output)
            for i in range(n)
        ]
        self.requests += made
        for request in made:
            request.priority = priority
            request.leader = made[0] if request is not made[0] else None
            self.scheduler.add(request)
        return made[0] if n == 1 else made

    def end(self, request: Request, reason: str = "abort") -> None:
        """What an engine does to end one request."""
        request.finish_reason = reason
        request.num_inflight_tokens = request.num_pending_tokens = 0
        self.scheduler.remove(request)

    def step(self) -> StepPlan:
        """Plan one step and commit the oldest in flight."""
        while len(self.in_flight) <= self.depth:
            plan = self.scheduler.schedule(self.now_s)
            if not plan.requests:
                break
            self.plans.append(plan)
            self.in_flight.append(plan)
            for request, count in zip(plan.requests, plan.num_tokens, strict=True):
                request.num_inflight_tokens += count
                if request.first_scheduled_s is None:
                    request.first_scheduled_s = self.now_s
                if not request.num_uncomputed_tokens:
                    request.num_pending_tokens += 1
        self.now_s += 1.0
        if self.in_flight:
            self._commit(self.in_flight.pop(0))
        return self.plans[-1] if self.plans else StepPlan()

    def _commit(self, plan: StepPlan) -> None:
        for request, count in zip(plan.requests, plan.num_tokens, strict=True):
            if request.finished:
                continue
            request.num_inflight_tokens -= count
            self.memory.commit(request, count, request.num_inflight_tokens)
            request.num_ever_computed = max(request.num_ever_computed, request.num_computed_tokens)
            if request.num_computed_tokens == request.num_tokens and request.num_pending_tokens:
                request.num_pending_tokens -= 1
                request.token_ids.append(request.num_tokens % 90)
                if request.num_output_tokens == 1:
                    request.first_token_s = self.now_s
                if request.num_tokens >= request.max_len:
                    self.end(request, "length")

    def check(self) -> None:
        """Books and pages add up, and every live request is in the books."""
        self.scheduler.check()
        self.memory.check()
        live = {request for request in self.requests if not request.finished}
        assert set(self.scheduler.requests()) == live

    def run(self, most: int = 2000) -> None:
        """Until nothing is left."""
        for _ in range(most):
            if not self.scheduler.has_requests:
                return
            self.step()
            self.check()
        raise AssertionError("the scheduler does not come to an end")


SWAP = {
    "memory__host_bytes": 64 * PAGE * TOKEN_BYTES,
    "scheduling__preemption": "swap",
}
