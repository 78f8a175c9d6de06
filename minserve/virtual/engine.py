"""An engine on modelled time, and its fast-forward: runs of steps in which nothing is decided.

While everybody who runs just writes his next token, scheduler, batch and commit say the same at
every step. `fast_forward` does such a run at once: it charges every step's time and tells every
step, allocates pages when single steps would, and adds the tokens at the end. Everything that can
be observed afterwards, the trace included, is what single steps give; a property test holds it.
"""

from __future__ import annotations

from dataclasses import replace

from minserve.clock import VirtualClock
from minserve.config import ResolvedConfig
from minserve.engine import Engine
from minserve.engine.prepare import Builder
from minserve.memory import KVManager
from minserve.request import Request
from minserve.scheduling import BatchingPolicy, LengthPredictor, QueuePolicy
from minserve.scheduling.policies.turns import is_decoding
from minserve.trace import RunTrace, StageTimes, StepPages, StepTrace
from minserve.virtual.runner import VirtualRunner


class VirtualEngine(Engine):
    """See the module. Its runner draws one and the same token for everybody."""

    def __init__(
        self,
        config: ResolvedConfig,
        runner: VirtualRunner,
        memory: KVManager,
        clock: VirtualClock,
        trace: RunTrace,
        builder: Builder,
        policy: BatchingPolicy | None = None,
        order: QueuePolicy | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        super().__init__(
            config, runner, memory, None, clock, trace, policy, order, predictor, builder
        )
        self._virtual_runner = runner
        # Detail is kept per request and step, so there would be nothing to save; and a page that
        # becomes full may change hands where a prefix cache is on.
        details = config.config.trace.per_request or self._check
        self._can_skip = self._keep_cache and not details and memory.prefix is None
        # Everybody's single row is the longest already; other padding would have to be counted.
        self._can_skip &= config.config.kernels.padding in ("none", "longest")

    def fast_forward(self, until_s: float = float("inf")) -> int:
        """Do as many steps as go by without a decision, at least none; returns how many.

        Begins no step at or after `until_s`. Call between steps.
        """
        last = self.trace.newest
        running = self._scheduler.running
        if last is None or not self._can_skip or not self._is_steady(last, running):
            return 0
        # The step that ends a request is a decision: places open.
        most = min(request.max_len - len(request.token_ids) for request in running) - 1
        steps = 0
        num = len(running)
        contexts = [len(request.token_ids) for request in running]
        size = self.memory.block_size
        while steps < most and self.clock.now() < until_s:
            growing = [r for r, n in zip(running, contexts, strict=True) if (n - 1) % size == 0]
            if len(growing) > self.memory.pool.num_available:
                break
            start_s = self.clock.now()
            steps += 1
            for request in growing:
                self.memory.reserve(request, steps)
            work = self._counter.count((1,) * num, contexts, num)
            forward_s = self._virtual_runner.charge(work, num, num)
            blocks = self.memory.pool.num_owned
            kv_tokens = last.kv_tokens + steps * num
            internal_slots = self.memory.use().internal_slots
            open_slots = blocks * size - kv_tokens
            self.trace.append(
                replace(
                    last,
                    index=last.index + steps,
                    start_s=start_s,
                    end_s=self.clock.now(),
                    stages=StageTimes(forward_s=forward_s),
                    work=work,
                    num_aborted=self._num_aborted if steps == 1 else 0,
                    blocks_used=blocks,
                    kv_bytes_allocated=blocks * self._block_bytes,
                    kv_tokens=kv_tokens,
                    kv_bytes_used=kv_tokens * self._token_bytes,
                    pages=StepPages(
                        owned_bytes=blocks * self._block_bytes,
                        future_bytes=(open_slots - internal_slots) * self._token_bytes,
                        internal_bytes=internal_slots * self._token_bytes,
                    ),
                )
            )
            contexts = [n + 1 for n in contexts]
        if steps:
            self._catch_up(running, steps)
        return steps

    def _is_steady(self, last: StepTrace, running: list[Request]) -> bool:
        """True when the next step is the last one again: the same requests, a token each."""
        scheduler = self._scheduler
        if not running or scheduler.waiting or len(running) != last.num_scheduled:
            return False
        if last.num_decode_tokens != len(running) or last.num_prefill_tokens:
            return False
        token = self._virtual_runner.token_id
        return scheduler.has_plain_budget and all(
            is_decoding(request)
            and (request.params.ignore_eos or token not in self._eos)
            and token not in request.params.stop_token_ids
            for request in running
        )

    def _catch_up(self, running: list[Request], steps: int) -> None:
        tokens = [self._virtual_runner.token_id] * steps
        for request in running:
            request.token_ids += tokens
            request.num_computed_tokens += steps
            request.num_ever_computed = request.num_computed_tokens
            self.memory.commit(request, steps)
            self._updates[request] = None
        self._num_steps += steps
        self._num_aborted = 0
