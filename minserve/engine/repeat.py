"""Many equal steps without a decision, done at once: for a runner that computes nothing.

While every running request only computes its newest token, scheduler, batch and commit give the
same result at every step. `Repeater` charges time and records a trace for each step of such a run,
allocates pages at the steps that need them, and adds all tokens at the end. The result, the trace
included, equals that of single steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.engine.record import Recorder
from minserve.engine.requests import LiveRequests
from minserve.hardware import WorkCounter
from minserve.memory import KVManager
from minserve.request import Request
from minserve.scheduling import Scheduler
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
        self._counter = WorkCounter(config.model, config.itemsize, storage=config.storage)
        self._eos = frozenset(config.model.eos_token_ids)
        whole = config.config
        # A detailed trace is written per request and step, so nothing would be saved; and with a
        # prefix cache, a page that becomes full may be replaced by another.
        details = whole.trace.per_request or whole.memory.check_integrity
        self._possible = whole.memory.kv_cache and not details and memory.prefix is None
        # Pages behind a window are freed when a step is committed, and here none is.
        self._possible &= all(group.retention.keeps_all for group in memory.groups)
        # With "longest", single rows need no padding; other kinds of padding would have to be
        # counted.
        self._possible &= whole.kernels.padding in ("none", "longest")

    def repeat(self, until_s: float, token: int, charge: Charge) -> int:
        """Repeat the last step until there is something to decide, drawing `token` for every
        request.

        Begins no step at or after `until_s`; returns the number of steps. If `charge` raises, the
        steps before it are complete.
        """
        running, recorder = self._scheduler.running, self._recorder
        last, first = recorder.last, recorder.num_steps
        if last is None or not self._possible or not self._is_steady(last, running, token):
            return 0
        # A step that ends a request is a decision: its place becomes free.
        most = min(request.max_len - len(request.token_ids) for request in running) - 1
        contexts = [len(request.token_ids) for request in running]
        kv_tokens = self._memory.use().kv_tokens
        try:
            while (steps := recorder.num_steps - first) < most and self._clock.now() < until_s:
                kv_tokens += len(running)
                if not self._step(running, contexts, steps + 1, kv_tokens, charge):
                    break
                contexts = [n + 1 for n in contexts]
        finally:
            steps = recorder.num_steps - first
            if steps:
                self._catch_up(running, steps, token)
        return steps

    def _step(
        self,
        running: Sequence[Request],
        contexts: Sequence[int],
        number: int,
        kv_tokens: int,
        charge: Charge,
    ) -> bool:
        """Charge and record one step; False, with nothing done, where pages are short."""
        size = self._memory.block_size
        growing = [r for r, n in zip(running, contexts, strict=True) if (n - 1) % size == 0]
        if len(growing) > self._memory.pool.num_available:
            return False
        start_s = self._clock.now()
        for request in growing:
            self._memory.reserve(request, number)
        num = len(running)
        work = self._counter.count((1,) * num, contexts, num)
        forward_s = charge(work, num, num)
        self._record(start_s, forward_s, work, kv_tokens)
        return True

    def _is_steady(self, last: StepTrace, running: Sequence[Request], token: int) -> bool:
        """True if the next step equals the last: the same requests, one token each."""
        scheduler = self._scheduler
        if not running or scheduler.num_waiting or len(running) != last.num_scheduled:
            return False
        if last.num_decode_tokens != len(running) or last.num_prefill_tokens:
            return False
        return scheduler.has_plain_budget and all(
            request.is_decoding
            and (request.params.ignore_eos or token not in self._eos)
            and token not in request.params.stop_token_ids
            for request in running
        )

    def _record(self, start_s: float, forward_s: float, work: StepWork, kv_tokens: int) -> None:
        """Record a step that decoded one token of every running request, and nothing else."""
        recorder, use = self._recorder, self._memory.use()
        running, now = self._scheduler.running, self._clock.now()
        num, kv_bytes = len(running), kv_tokens * recorder.token_bytes
        waited_since = Counter(request.last_token_s for request in running)
        recorder.append(
            StepTrace(
                index=recorder.num_steps,
                start_s=start_s,
                end_s=now,
                stages=StageTimes(forward_s=forward_s),
                work=work,
                num_waiting=self._scheduler.num_waiting,
                num_running=num,
                num_scheduled=num,
                num_prefill_tokens=0,
                num_decode_tokens=num,
                num_recomputed_tokens=0,
                num_sampled_tokens=num,
                num_preempted=recorder.num_preempted,
                num_finished=0,
                num_aborted=recorder.num_aborted,
                num_refused=recorder.num_refused,
                num_arrived=recorder.num_arrived,
                interarrival_s=tuple(recorder.interarrival_s),
                blocks_total=use.blocks_total,
                blocks_used=use.blocks_used,
                kv_tokens=kv_tokens,
                kv_bytes_reserved=use.total_bytes,
                kv_bytes_allocated=use.owned_bytes,
                kv_bytes_used=kv_bytes,
                blocks=StepBlocks(
                    cached_blocks=use.blocks_cached,
                    owned_bytes=use.owned_bytes,
                    future_bytes=use.owned_bytes - kv_bytes - use.internal_bytes,
                    internal_bytes=use.internal_bytes,
                    host_bytes=use.host_bytes,
                ),
                itl_s=tuple(now - (before or now) for before in waited_since),
                itl_counts=tuple(waited_since.values()),
            )
        )
        for request in running:
            request.last_token_s = now

    def _catch_up(self, running: Sequence[Request], steps: int, token: int) -> None:
        """Give the requests the tokens of all the steps."""
        tokens = [token] * steps
        for request in running:
            request.token_ids += tokens
            self._memory.commit(request, steps)
            request.num_ever_computed = request.num_computed_tokens
            self._requests.tell(request)
