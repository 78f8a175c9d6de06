"""Many equal steps without a decision, done at once: for a runner that computes nothing.

While every running request only computes its newest token, scheduler, batch and commit give the
same result at every step. `Repeater` charges time and records a trace for each step of such a run,
allocates pages at the steps that need them, and adds all tokens at the end. The result, the trace
included, equals that of single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.engine.record import Recorder
from minserve.engine.requests import LiveRequests
from minserve.hardware import WorkCounter
from minserve.memory import KVManager
from minserve.request import Request
from minserve.scheduling import Scheduler, is_decoding
from minserve.trace import StageTimes, StepBlocks, StepTrace, StepWork

Charge = Callable[[StepWork, int, int], float]
"""A step's work, tokens and number of requests -> its seconds, by which the clock has advanced."""


class Repeater:
    """Repeats the last step of one engine."""

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        scheduler: Scheduler,
        requests: LiveRequests,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self._requests = requests
        self._recorder = recorder
        self._clock = clock
        self._counter = WorkCounter(config.model, config.itemsize)
        self._eos = frozenset(config.model.eos_token_ids)
        whole = config.config
        # A detailed trace is written per request and step, so nothing would be saved; and with a
        # prefix cache, a page that becomes full may be replaced by another.
        details = whole.trace.per_request or whole.memory.check_integrity
        self._possible = whole.memory.kv_cache and not details and memory.prefix is None
        # With "longest", single rows need no padding; other kinds of padding would have to be
        # counted.
        self._possible &= whole.kernels.padding in ("none", "longest")

    def repeat(self, last: StepTrace | None, until_s: float, token: int, charge: Charge) -> int:
        """Repeat the step `last` until there is something to decide, drawing `token` for every
        request.

        Begins no step at or after `until_s`; returns the number of steps.
        """
        running = self._scheduler.running
        if last is None or not self._possible or not self._is_steady(last, running, token):
            return 0
        # A step that ends a request is a decision: its place becomes free.
        most = min(request.max_len - len(request.token_ids) for request in running) - 1
        steps, num = 0, len(running)
        contexts = [len(request.token_ids) for request in running]
        size, pool = self._memory.block_size, self._memory.pool
        while steps < most and self._clock.now() < until_s:
            growing = [r for r, n in zip(running, contexts, strict=True) if (n - 1) % size == 0]
            if len(growing) > pool.num_available:
                break
            start_s = self._clock.now()
            steps += 1
            for request in growing:
                self._memory.reserve(request, steps)
            work = self._counter.count((1,) * num, contexts, num)
            forward_s = charge(work, num, num)
            self._tell(last, steps, start_s, forward_s, work)
            contexts = [n + 1 for n in contexts]
        if steps:
            self._catch_up(running, steps, token)
        return steps

    def _is_steady(self, last: StepTrace, running: Sequence[Request], token: int) -> bool:
        """True if the next step equals the last: the same requests, one token each."""
        scheduler = self._scheduler
        if not running or scheduler.waiting or len(running) != last.num_scheduled:
            return False
        if last.num_decode_tokens != len(running) or last.num_prefill_tokens:
            return False
        return scheduler.has_plain_budget and all(
            is_decoding(request)
            and (request.params.ignore_eos or token not in self._eos)
            and token not in request.params.stop_token_ids
            for request in running
        )

    def _tell(
        self, last: StepTrace, steps: int, start_s: float, forward_s: float, work: StepWork
    ) -> None:
        """Record step number `steps` after `last`."""
        recorder, pool = self._recorder, self._memory.pool
        blocks, slot_bytes = pool.num_owned, recorder.token_bytes
        kv_tokens = last.kv_tokens + steps * last.num_scheduled
        internal_slots = self._memory.use().internal_slots
        open_slots = blocks * self._memory.block_size - kv_tokens
        owned_bytes = blocks * recorder.block_bytes
        recorder.append(
            replace(
                last,
                index=last.index + steps,
                start_s=start_s,
                end_s=self._clock.now(),
                stages=StageTimes(forward_s=forward_s),
                work=work,
                num_aborted=recorder.num_aborted,
                blocks_used=blocks,
                kv_bytes_allocated=owned_bytes,
                kv_tokens=kv_tokens,
                kv_bytes_used=kv_tokens * slot_bytes,
                blocks=StepBlocks(
                    owned_bytes=owned_bytes,
                    future_bytes=(open_slots - internal_slots) * slot_bytes,
                    internal_bytes=internal_slots * slot_bytes,
                ),
            )
        )

    def _catch_up(self, running: Sequence[Request], steps: int, token: int) -> None:
        """Give the requests the tokens of all the steps."""
        tokens = [token] * steps
        for request in running:
            request.token_ids += tokens
            request.num_computed_tokens += steps
            request.num_ever_computed = request.num_computed_tokens
            self._memory.commit(request, steps)
            self._requests.tell(request)
