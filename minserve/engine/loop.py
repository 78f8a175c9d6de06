"""The engine: add, abort, `step() -> StepTrace`. The loop, and nothing but the loop.

A step schedules, submits a batch to the runner, collects the oldest batch in flight and commits its
tokens to their requests. With `scheduling.async_scheduling` one more batch is submitted before the
oldest is collected, so that the device has work while the host plans (overlap of depth 1, as in
SGLang and vLLM). Prints nothing and reads no clock but its own. Knows nothing about model files,
threads or what a caller does with the text.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.engine.admission import check_request
from minserve.engine.prepare import BatchBuilder, Builder, BuiltBatch, PaddedBuilder
from minserve.engine.recovery import Recovery, audit, describe, failing_rows, is_interrupt
from minserve.execution.runner import Handle, Runner, StepResult
from minserve.hardware import WorkCounter
from minserve.inputs.prompts import check_arrival, check_priority, check_request_id
from minserve.memory import IntegrityError, KVManager, MemoryEvents
from minserve.process.exits import GATE
from minserve.request import (
    FinishReason,
    InvalidRequestError,
    Request,
    SamplingParams,
    Status,
    TokenLogprobs,
)
from minserve.sampling import LogitsMask, make_masks
from minserve.scheduling import BatchingPolicy, LengthPredictor, QueuePolicy, Scheduler, StepPlan
from minserve.tokenizer import TextStream, Tokenizer
from minserve.trace import RequestStep, RunTrace, StageTimes, StepPages, StepTrace, StepWork


@dataclass(frozen=True)
class _InFlight:
    """A step between submit and collect."""

    plan: StepPlan
    built: BuiltBatch
    handle: Handle
    events: MemoryEvents
    start_s: float
    schedule_s: float
    prepare_s: float
    work: StepWork
    blocks_used: int


class Engine:
    """One model, one pool of pages, one batch at a time, or two in flight. Not thread-safe: see
    `AsyncLLM`."""

    def __init__(
        self,
        config: ResolvedConfig,
        runner: Runner,
        memory: KVManager,
        tokenizer: Tokenizer | None,
        clock: Clock,
        trace: RunTrace,
        policy: BatchingPolicy | None = None,
        order: QueuePolicy | None = None,
        predictor: LengthPredictor | None = None,
        builder: Builder | None = None,
    ) -> None:
        self.config = config
        self.memory = memory
        self.trace = trace
        self.clock = clock
        self._runner = runner
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(config, memory, policy, order, predictor)
        groups = config.model.cache_groups()
        self._builder: Builder = builder or BatchBuilder(
            memory, len(groups), config.model.eos_token_ids
        )
        if config.padding != "none":
            # The page behind the pool's own, which the cache then has: see `build`.
            self._builder = PaddedBuilder(
                self._builder,
                config.padding,
                memory.pool.num_blocks,
                memory.block_size,
                config.max_graph_rows,
            )
        self._counter = WorkCounter(config.model, config.itemsize)
        self._token_bytes = config.model.kv_bytes_per_token(config.itemsize)
        self._block_bytes = config.block_bytes
        self._keep_cache = config.config.memory.kv_cache
        self._depth = 1 if config.config.scheduling.async_scheduling else 0
        self._check = config.config.memory.check_integrity
        self._pages = config.config.trace.per_request and config.config.trace.pages
        self._eos = frozenset(config.model.eos_token_ids)
        self._in_flight: deque[_InFlight] = deque()
        self._live: dict[str, list[Request]] = {}
        self._texts: dict[Request, TextStream] = {}
        self._updates: dict[Request, None] = {}
        self._recovery = Recovery(self)
        self._has_lost_pass = False
        """A pass failed, or was interrupted, between its submission and its place in flight."""
        self._num_added = 0
        self._num_steps = 0
        self._num_aborted = 0
        self._num_preempted = 0
        self._end_s = float("-inf")

    @property
    def has_work(self) -> bool:
        """True while a step would compute or collect something."""
        scheduler = self._scheduler
        return scheduler.has_requests or bool(self._in_flight)

    @property
    def has_requests(self) -> bool:
        """True while a request has not ended."""
        return bool(self._live)

    def live_requests(self) -> list[Request]:
        """The requests that have not ended, in order of arrival."""
        return [request for group in self._live.values() for request in group]

    @property
    def max_request_tokens(self) -> int:
        """Longest prompt plus output this engine can serve: `max_model_len`, or the pool."""
        pool_tokens = self.memory.capacity_tokens + 1  # the last token is drawn, never computed
        return min(self.config.max_model_len, pool_tokens)

    @property
    def longest_live_tokens(self) -> int:
        """Most tokens that a live request may reach; 0 where none is live."""
        lengths = (one.max_len for group in self._live.values() for one in group)
        return max(lengths, default=0)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        stream_text: bool = False,
        arrival_s: float | None = None,
        priority: int = 0,
    ) -> list[Request]:
        """Queue a prompt; returns its `params.n` samples. A smaller `priority` goes first where
        `scheduling.order` is "priority".

        Raises InvalidRequestError when the request cannot be served, and changes nothing then.
        """
        self._recovery.repair()
        priority, arrival_s = check_priority(priority), check_arrival(arrival_s)
        prompt = list(prompt_token_ids)
        params, masks = self.check(request_id, prompt, params)
        max_len = self.max_request_tokens
        if params.max_tokens is not None:
            max_len = min(max_len, len(prompt) + params.max_tokens)
        seed = params.seed
        if seed is None:
            seed = self.config.config.seed + self._num_added
        arrival = self.clock.now() if arrival_s is None else arrival_s
        requests = [
            Request(request_id, prompt, params, arrival, seed, index, max_len, masks=masks)
            for index in range(params.n)
        ]
        self._num_added += 1
        try:
            with self._recovery.change(requests):
                self._live[request_id] = list(requests)
                for request in requests:
                    self._queue(request, requests[0], stream_text, priority)
        except BaseException:
            for request in requests:  # the caller never gets them
                self.forget(request)
                self._updates.pop(request, None)
            raise
        return requests

    def check(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> tuple[SamplingParams, tuple[LogitsMask, ...]]:
        """The parameters and masks to serve a request with. Raises InvalidRequestError when it
        cannot be served as asked."""
        check_request_id(request_id)
        if request_id in self._live:
            raise InvalidRequestError(f"request {request_id}: one of this name is still running")
        params = check_request(
            request_id,
            prompt_token_ids,
            params,
            self.config,
            self.max_request_tokens,
            self._tokenizer is not None,
        )
        return params, make_masks(params, self._tokenizer)

    def _queue(self, request: Request, first: Request, stream_text: bool, priority: int) -> None:
        """One sample of a new prompt, of which `first` is the first."""
        params = request.params
        if request is not first and self.config.config.memory.copy_on_write:
            request.leader = first
        request.priority = priority
        if params.prompt_logprobs is not None:
            request.prompt_logprobs.append(None)
        if self._tokenizer is not None and params.detokenize and (stream_text or params.stop):
            self._texts[request] = TextStream(self._tokenizer, params)
        self._scheduler.add(request)

    def abort(self, request_id: str) -> bool:
        """End all samples of a request now; False when none of that name is live."""
        return self.abort_requests(tuple(self._live.get(request_id, ())))

    def abort_requests(self, requests: Sequence[Request]) -> bool:
        """End these samples now, whatever other request has their name; False when all had ended
        already."""
        live = [request for request in requests if not request.finished]
        if live:
            with self._recovery.change(live):
                for request in live:
                    self._finish(request, "abort")
                    self._num_aborted += 1
        return bool(live)

    def abort_all(self) -> None:
        """End every live request."""
        for request_id in list(self._live):
            self.abort(request_id)

    def unpin(self, handle: int) -> None:
        """Let a pin's pages be evicted again. An unknown handle is a KeyError."""
        self.memory.check_pin(handle)  # a caller's mistake is no failure of the engine
        with self._recovery.change(()):
            self.memory.unpin(handle)

    def close(self) -> None:
        """End every live request, wait for what is in flight, delete what was kept on disk."""
        try:
            self.abort_all()
            self.settle()
        finally:
            self.memory.close()

    def settle(self) -> None:
        """Wait for what is in flight and commit it; submit nothing more."""
        while self._in_flight:
            with self._recovery.change(()):
                self._collect()

    def take_updates(self) -> list[Request]:
        """Requests that got a token or finished since the last call, in order."""
        updates = list(self._updates)
        self._updates.clear()
        return updates

    def text_of(self, request: Request) -> str:
        """The request's text so far; the empty string when the model has no tokenizer, or no text
        is wanted (`SamplingParams.detokenize`)."""
        if self._tokenizer is None or not request.params.detokenize:
            return ""
        stream = self._texts.get(request)
        if stream is not None:
            return stream.text
        params, tokens = request.params, request.output_token_ids
        ended_by_id = request.finish_reason == "stop" and not isinstance(request.stop_reason, str)
        if ended_by_id and not params.include_stop_str_in_output:
            del tokens[-1]
        return self._tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)

    def forget(self, request: Request) -> None:
        """Drop what the engine keeps about a finished request's text."""
        self._texts.pop(request, None)

    def step(self) -> StepTrace:
        """Schedule, submit, collect the oldest batch, commit. Call only while `has_work`.

        With a batch in flight, the next one is planned on tokens that only the device knows yet:
        their rows are filled in there (`ForwardBatch.pending`). A request that turns out to have
        ended meanwhile was computed once too often, and that row's result is dropped. Its pages may
        be given to another request while a step in flight still uses them: what touches them next,
        a batch or a copy, is queued behind that step. No request in flight is preempted
        (`StepPlan.waits`).

        What it raises has ended the requests it belongs to, with reason "error" and `cause`: one
        request where that can be told, else the batch, else all. The engine stays usable.
        """
        with GATE, self._recovery.change(()):
            trace = self._step()
            self._recovery.progress()
            return trace

    def _step(self) -> StepTrace:
        while len(self._in_flight) <= self._depth and not self._must_know_tokens():
            if not self._submit():
                break
        if not self._in_flight:
            self._recovery.owners = list(self._scheduler.waiting)[:1]
            raise IntegrityError("requests wait, none runs, and none can be admitted")
        return self._collect()

    def _must_know_tokens(self) -> bool:
        """True where a token in flight decides how the next one is drawn: penalties count it. And
        where a pass was lost, because pending tokens are those of the pass submitted last."""
        if not self._in_flight:
            self._has_lost_pass = False
            return False
        return self._has_lost_pass or any(
            request.needs_known_tokens for request in self._in_flight[-1].built.sampled
        )

    def _submit(self) -> bool:
        """Plan one batch and start it; False where there is nothing to compute now."""
        start = self.clock.now()
        self._recovery.owners = None
        plan = self._scheduler.schedule(start)
        self._recovery.owners = ()
        self._num_preempted += len(plan.preempted)
        scheduled = self.clock.now()
        if not plan.requests:
            return False
        try:
            built = self._builder.build(plan)
        except BaseException:
            self._recovery.owners = failing_rows(self._builder, plan) or plan.requests
            raise
        work = self._counter.count(
            built.batch.query_lens,
            built.batch.context_lens,
            len(built.sampled) + len(built.prompt_owners),
        )
        blocks_used = self.memory.pool.num_owned
        prepared = self.clock.now()
        self._recovery.owners = plan.requests
        try:
            handle = self._runner.submit(built.batch)
            self.memory.submitted(built.batch)
            self._in_flight.append(
                _InFlight(
                    plan=plan,
                    built=built,
                    handle=handle,
                    events=self.memory.take_events(),
                    start_s=start,
                    schedule_s=scheduled - start,
                    prepare_s=prepared - scheduled,
                    work=work,
                    blocks_used=blocks_used,
                )
            )
        except BaseException:
            self.memory.failed()  # something of it may be queued on the device
            self._has_lost_pass = True
            raise
        for request, count in zip(plan.requests, plan.num_tokens, strict=True):
            request.num_inflight_tokens += count
            if request.first_scheduled_s is None:
                request.first_scheduled_s = start
        for row, request in enumerate(built.sampled):
            request.num_pending_tokens += 1
            request.pending_row = row
        return True

    def _collect(self) -> StepTrace:
        flight = self._in_flight[0]
        self._recovery.owners = flight.plan.requests
        try:
            result = self._runner.collect(flight.handle)
        finally:
            self._in_flight.popleft()
            self.memory.collected()
            self._recovery.progress()  # also where all its requests had ended: it is gone
        now = self.clock.now()
        counts = self._commit(flight, result, now)
        self._recovery.owners = ()
        if self._check:
            self.memory.check()
        use, events = self.memory.use(), flight.events + self.memory.take_events()
        num_tokens = sum(flight.plan.num_tokens)
        num_prefill = num_tokens - counts.num_decode - counts.num_discarded
        if num_prefill:
            # A compilation is paid once and says nothing about what tokens cost.
            forward_s = result.forward_s - result.compile_s
            spent_s = forward_s * num_prefill / num_tokens
            self.memory.costs.computed(num_prefill, spent_s)
        slot_bytes = self._token_bytes
        trace = StepTrace(
            index=self._num_steps,
            # Steps that overlap are told one after the other: each from the end of the last.
            start_s=max(flight.start_s, self._end_s),
            end_s=self.clock.now(),
            stages=StageTimes(
                schedule_s=flight.schedule_s,
                transfer_s=events.transfer_s,
                prepare_s=flight.prepare_s,
                forward_s=result.forward_s,
                attention_s=result.attention_s,
                compile_s=result.compile_s,
                sample_s=result.sample_s,
                commit_s=self.clock.now() - now,
            ),
            work=flight.work,
            num_waiting=self._scheduler.num_waiting,
            num_running=len(self._scheduler.running),
            num_scheduled=len(flight.plan.requests),
            num_prefill_tokens=num_prefill,
            num_decode_tokens=counts.num_decode,
            num_recomputed_tokens=counts.num_recomputed,
            num_sampled_tokens=counts.num_sampled,
            num_preempted=self._num_preempted,
            num_finished=counts.num_finished,
            num_aborted=self._num_aborted,
            blocks_total=use.blocks_total,
            blocks_used=flight.blocks_used,
            kv_tokens=use.kv_tokens,
            kv_bytes_reserved=use.blocks_total * self._block_bytes,
            kv_bytes_allocated=flight.blocks_used * self._block_bytes,
            kv_bytes_used=use.kv_tokens * slot_bytes,
            pages=StepPages(
                hit_tokens=events.hit_tokens,
                loaded_tokens=events.loaded_tokens,
                copied_blocks=events.copied_blocks,
                evicted_blocks=events.evicted_blocks,
                swapped_out_blocks=events.swapped_out_blocks,
                swapped_in_blocks=events.swapped_in_blocks,
                cached_blocks=use.blocks_cached,
                owned_bytes=use.blocks_used * self._block_bytes,
                future_bytes=use.reserved_slots * slot_bytes,
                internal_bytes=use.internal_slots * slot_bytes,
                external_bytes=self._scheduler.stranded_slots() * slot_bytes,
            ),
            requests=tuple(counts.details),
            cached_pages=self.memory.pool.cached_blocks() if self._pages else (),
            num_padded_rows=flight.built.batch.num_tokens - num_tokens,
            num_discarded_tokens=counts.num_discarded,
            num_compiled_graphs=result.num_compiled_graphs,
            num_cached_graphs=result.num_cached_graphs,
        )
        self._num_steps += 1
        self._num_aborted = self._num_preempted = 0
        self._end_s = trace.end_s
        self.trace.append(trace)
        for sentence in self.memory.take_notes():
            self.trace.note(sentence)
        return trace

    def _commit(self, flight: _InFlight, result: StepResult, now: float) -> _CommitCounts:
        counts = _CommitCounts(details=[])
        detail = self.config.config.trace.per_request
        pages = detail and self.config.config.trace.pages
        spans: list[tuple[Request, int, int, int, tuple[int, ...]]] = []
        for request, count in zip(flight.plan.requests, flight.plan.num_tokens, strict=True):
            if request.finish_reason is not None:
                counts.num_discarded += count
                continue
            request.num_inflight_tokens -= count
            start = request.num_computed_tokens
            stop = start + count
            if count == 1 and stop == len(request.token_ids) > len(request.prompt_token_ids):
                counts.num_decode += 1
            recomputed, known = 0, request.num_ever_computed
            if start < known:
                recomputed = min(stop, known) - start
                counts.num_recomputed += recomputed
            if detail:
                blocks = self.memory.blocks_of(request) if pages else ()
                spans.append((request, start, count, recomputed, blocks))
            if stop > known:
                request.num_ever_computed = stop
            try:
                if self._keep_cache:
                    request.num_computed_tokens = stop
                    self.memory.commit(request, count, request.num_inflight_tokens)
                else:
                    self.memory.forget(request)
            except BaseException as error:
                self._recovery.fail_row(request, error)
        for request, entry in zip(flight.built.prompt_owners, result.prompt_logprobs, strict=True):
            if not request.finished:
                request.prompt_logprobs.append(_limit(entry, request.params.prompt_logprobs or 0))
        logprobs = result.logprobs
        for row, request in enumerate(flight.built.sampled):
            if request.finish_reason is not None:
                continue
            request.num_pending_tokens -= 1
            token = result.token_ids[row]
            try:
                failed = result.errors.get(row) if result.errors else None
                if failed is not None:
                    raise failed
                self._append(request, token, logprobs.get(row) if logprobs else None, now)
            except BaseException as error:
                self._recovery.fail_row(request, error)
            counts.num_sampled += 1
            if request.finish_reason is not None:
                counts.num_finished += 1
        drawn = set(flight.built.sampled) if detail else ()
        for request, start, count, recomputed, blocks in spans:
            new = (request.token_ids[-1],) if request in drawn and not request.error else ()
            counts.details.append(
                RequestStep(
                    request.request_id,
                    request.sample_index,
                    start,
                    count,
                    recomputed,
                    new,
                    blocks,
                )
            )
        return counts

    def _append(
        self, request: Request, token: int, logprobs: TokenLogprobs | None, now: float
    ) -> None:
        self._updates[request] = None
        if token < 0:
            request.error = _why_invalid(request)
            self._finish(request, "error")
            return
        if request.first_token_s is None:
            request.first_token_s = now
        request.token_ids.append(token)
        if logprobs is not None:
            request.logprobs.append(_limit(logprobs, request.params.logprobs or 0))
        params, num_tokens = request.params, len(request.token_ids)
        stream = self._texts.get(request) if self._texts else None
        may_end = num_tokens - len(request.prompt_token_ids) >= params.min_tokens
        is_eos = token in self._eos and not params.ignore_eos
        ends_by_id = may_end and (is_eos or token in params.stop_token_ids)
        if stream is not None and (not ends_by_id or params.include_stop_str_in_output):
            stream.push((token,))
        if ends_by_id:
            self._finish(request, "stop", None if is_eos else token, now=now)
        elif may_end and stream is not None and stream.stopped_by is not None:
            self._finish(request, "stop", stream.stopped_by, now=now)
        elif num_tokens >= request.max_len:
            self._finish(request, "length", now=now)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        *,
        now: float | None = None,
    ) -> None:
        stream = self._texts.get(request)
        if stream is not None:
            try:
                stream.finish()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                reason, stop_reason = "error", None
                request.error, request.cause = describe(error), error
            # Text held back may decide at the end that a stop string is there after all; it is
            # what cut the text, whatever ended the tokens.
            if reason in ("stop", "length") and stream.stopped_by is not None:
                reason, stop_reason = "stop", stream.stopped_by
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.finished_s = self.clock.now() if now is None else now
        self._retire(request)

    def _retire(self, request: Request) -> None:
        """Take an ended request out of queues, pages and names, and tell of it."""
        self._scheduler.remove(request)
        self._tell_end(request)
        siblings = self._live[request.request_id]
        siblings.remove(request)
        if not siblings:
            del self._live[request.request_id]

    def _tell_end(self, request: Request) -> None:
        self._updates[request] = None
        assert request.finish_reason is not None
        self.trace.finish_request(
            request.request_id, request.sample_index, request.metrics(), request.finish_reason
        )

    # -- when something fails ----------------------------------------------------------------------

    def culprit(self) -> Request | None:
        """See `Recoverable.culprit`."""
        return self._scheduler.culprit

    def fail(self, request: Request, error: BaseException | None) -> None:
        """End a request with an error; one that was interrupted as it ended ends completely."""
        if not request.finished:
            request.error, request.cause = describe(error), error
            self._finish(request, "error")
        elif request in self._live.get(request.request_id, ()):
            self._retire(request)

    def audit(self) -> None:
        """Verify that engine, scheduler and memory agree. Raises IntegrityError."""
        live = self._live.values()
        audit(self._scheduler, self.memory, live, self._in_flight, self._keep_cache)

    def start_over(self, error: BaseException | None) -> None:
        """End everything, and begin with empty books: nothing that was half-done is found again."""
        while self._in_flight:
            flight = self._in_flight.popleft()
            with contextlib.suppress(Exception):
                self._runner.collect(flight.handle)
            self.memory.collected()
        live = self.live_requests()
        for request in live:
            if not request.finished:
                request.error, request.cause = describe(error), error
                # Nothing here may fail, a clock either.
                request.finish_reason, request.finished_s = "error", self._end_s
            request.status = Status.FINISHED
            self._tell_end(request)
        self._live.clear()
        self._scheduler.clear()
        self.memory.reset()
        self.trace.note(
            f"after an error nothing was certain any more: {len(live)} requests were ended and the "
            f"prefix cache was emptied ({describe(error)})"
        )


@dataclass
class _CommitCounts:
    details: list[RequestStep]
    num_decode: int = 0
    num_recomputed: int = 0
    num_sampled: int = 0
    num_finished: int = 0
    num_discarded: int = 0


def _why_invalid(request: Request) -> str:
    """Why there was no token to draw, in a sentence."""
    where = f"request {request.request_id}: at position {request.num_tokens}"
    params = request.params
    if request.masks or params.min_tokens or float("-inf") in params.logit_bias.values():
        return (
            f"{where} no token was left to draw: allowed_token_ids, bad_words, logit_bias and "
            "min_tokens together ban every one, or the model gave NaN"
        )
    return (
        f"{where} the model's logits are not numbers; a larger number format "
        "(EngineConfig.dtype) may help"
    )


def _limit(entry: TokenLogprobs, count: int) -> TokenLogprobs:
    """The batch computes as many alternatives as its greediest request asked for."""
    if len(entry.top) <= count:
        return entry
    return TokenLogprobs(entry.token_id, entry.logprob, entry.rank, entry.top[:count])
