"""The engine: add, abort, `step() -> StepTrace`. The loop only; each part of a step has its own
file.

A step schedules, submits a batch to the runner, collects the oldest batch in flight and commits its
tokens to their requests. With `scheduling.async_scheduling` one more batch is submitted before the
oldest is collected, so that the device has work while the host plans (overlap of depth 1, as in
SGLang and vLLM). Prints nothing and reads no clock but its own. Knows nothing about model files,
threads, or what a caller does with the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.decoding import Speculator
from minserve.engine.admission import Intake
from minserve.engine.books import EngineBooks
from minserve.engine.commit import Committer
from minserve.engine.flight import Flight, mark_in_flight
from minserve.engine.migration import ExportedRequest
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.engine.prepare import Builder, BuiltBatch, batch_builder
from minserve.engine.record import Recorder
from minserve.engine.recovery import Recovery, failing_rows
from minserve.engine.repeat import Charge, Repeater
from minserve.engine.requests import LiveRequests
from minserve.execution.runner import Runner
from minserve.hardware import WorkCounter
from minserve.memory import IntegrityError, KVManager
from minserve.process.exits import GATE
from minserve.request import Request, SamplingParams
from minserve.sampling import LogitsMask
from minserve.scheduling import Scheduler, StepPlan
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace, StepTrace, StepWork


class Engine:
    """One model, one pool of pages, and one batch at a time (two with overlap).

    Not thread-safe: see `AsyncLLM`.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        runner: Runner,
        memory: KVManager,
        tokenizer: Tokenizer | None,
        clock: Clock,
        trace: RunTrace,
        parts: EngineParts = CONFIGURED,
        builder: Builder | None = None,
    ) -> None:
        """`builder` None: batches with real contents, for a runner that computes."""
        self.config = config
        self.memory: Final = memory
        self.clock: Final = clock
        self._runner = runner
        speculator = self._speculator = Speculator(parts.proposer, config.model.vocab_size)
        self._builder = batch_builder(config, memory, builder, speculator.needs_hidden)
        self._counter = WorkCounter(config.model, config.itemsize, storage=config.storage)
        self._depth = 1 if config.config.scheduling.async_scheduling else 0
        self._check = config.config.memory.check_integrity
        self._in_flight: deque[Flight] = deque()
        scheduler = self._scheduler = Scheduler(config, memory, parts.policies(config))
        recorder = self._recorder = Recorder(config, memory, scheduler, clock, trace)
        requests = self._requests = LiveRequests(scheduler, tokenizer, clock, recorder)
        self._books = EngineBooks(requests, scheduler, memory, self._in_flight, runner, recorder)
        self._recovery = Recovery(self._books)
        self._intake = Intake(
            config, memory, scheduler, requests, self._recovery, recorder, clock, tokenizer
        )
        self._committer = Committer(config, memory, requests, self._recovery, speculator)
        self._repeater = Repeater(config, memory, scheduler, requests, recorder, clock)
        self._has_lost_pass = False
        """A pass failed or was interrupted after its submission and before it was recorded as in
        flight."""

    @property
    def trace(self) -> RunTrace:
        """The trace that steps are recorded in. It may be replaced between two steps."""
        return self._recorder.trace

    @trace.setter
    def trace(self, trace: RunTrace) -> None:
        self._recorder.trace = trace

    @property
    def has_work(self) -> bool:
        """True while a step would compute or collect something."""
        scheduler = self._scheduler
        return scheduler.has_requests or bool(self._in_flight)

    @property
    def has_requests(self) -> bool:
        """True while a request has not ended."""
        return bool(self._requests)

    def live_requests(self) -> list[Request]:
        """The requests that have not ended, in order of arrival."""
        return list(self._requests)

    @property
    def max_request_tokens(self) -> int:
        """Longest prompt plus output this engine can serve: `max_model_len`, or the pool."""
        return self._intake.max_request_tokens

    @property
    def longest_live_tokens(self) -> int:
        """Most tokens that any live request may reach; 0 if no request is live."""
        return max((request.max_len for request in self._requests), default=0)

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
        """Queue a prompt; returns its `params.n` samples. If `scheduling.order` is "priority", a
        request with a smaller `priority` goes first.

        Raises InvalidRequestError if the request cannot be served, and QueueFullError if too many
        requests wait; nothing has changed then.
        """
        self._recovery.repair()
        return self._intake.add(
            request_id, prompt_token_ids, params, stream_text, arrival_s, priority
        )

    def check(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> tuple[SamplingParams, tuple[LogitsMask, ...]]:
        """The parameters and masks to serve a request with. Raises InvalidRequestError if it cannot
        be served."""
        return self._intake.check(request_id, prompt_token_ids, params)

    def prepare(self, params: SamplingParams) -> None:
        """Compile the form that these parameters ask for (`structured_outputs`), and keep it for
        `add`. From any thread. Raises InvalidRequestError if it cannot be compiled."""
        self._intake.grammars.prepare(params)

    def export_request(self, request_id: str) -> ExportedRequest:
        """Take a request out of this engine, for `import_request` of another one: its samples that
        have not ended, with their computed tokens. It leaves no end in the trace.

        Raises InvalidRequestError if no live request has this name; the steps in flight, which are
        completed first, may end it.
        """
        self.settle()
        self._recovery.repair()
        return self._intake.export(request_id)

    def import_request(self, moved: ExportedRequest) -> list[Request]:
        """Queue a request that another engine has exported; it continues with the same tokens.

        Raises InvalidRequestError if this engine cannot continue it; nothing has changed then.
        """
        self._recovery.repair()
        return self._intake.adopt(moved)

    def abort(self, request_id: str) -> bool:
        """End all samples of a request now. False if no live request has this name."""
        return self.abort_requests(tuple(self._requests.samples(request_id)))

    def abort_requests(self, requests: Sequence[Request]) -> bool:
        """End these samples now, even if another request has the same name since. False if all of
        them had already ended."""
        live = [request for request in requests if not request.finished]
        if live:
            with self._recovery.change(live):
                for request in live:
                    self._requests.finish(request, "abort")
                    self._recorder.num_aborted += 1
        return bool(live)

    def abort_all(self) -> None:
        """End every live request."""
        for request_id in self._requests.names():
            self.abort(request_id)

    def unpin(self, handle: int) -> None:
        """Allow a pin's pages to be evicted again. Raises KeyError for an unknown handle."""
        self.memory.pins.check(handle)  # a caller's mistake is not a failure of the engine
        with self._recovery.change(()):
            self.memory.pins.remove(handle)

    def close(self) -> None:
        """End every live request, wait for the steps in flight, and delete files kept on disk."""
        try:
            self.abort_all()
            self.settle()
        finally:
            self.memory.close()

    def settle(self) -> None:
        """Wait for the steps in flight and commit them; submit nothing more."""
        while self._in_flight:
            with self._recovery.change(()):
                self._collect()

    def take_updates(self) -> list[Request]:
        """Requests that got a token or finished since the last call, in order."""
        return self._requests.take_news()

    def text_of(self, request: Request) -> str:
        """The request's text so far. Empty without a tokenizer, or if `SamplingParams.detokenize`
        is False."""
        return self._requests.text_of(request)

    def forget(self, request: Request) -> None:
        """Drop the text that the engine keeps for a finished request."""
        self._requests.forget(request)

    def step(self) -> StepTrace:
        """Schedule, submit, collect the oldest batch, commit. Call only while `has_work`.

        With a batch in flight, the next one is planned although some of its tokens are known only
        on the device: the device fills in their rows (`ForwardBatch.pending`). If it turns out that
        a request has ended meanwhile, its extra row was computed in vain and the result is dropped.
        Its pages may be given to another request while a step in flight still uses them: the next
        batch or copy that touches them is queued behind that step. A request in flight is not
        preempted (`StepPlan.waits`).

        If a step raises, the requests that the error belongs to have already ended, with reason
        "error" and `cause`: one request if we can tell which, else its batch, else all. The engine
        can still be used.
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
            self._recovery.raise_row_error()  # it may have ended every request
            self._recovery.owners = list(self._scheduler.waiting)[:1]
            raise IntegrityError("requests wait, none runs, and none can be admitted")
        return self._collect()

    def _must_know_tokens(self) -> bool:
        """True if the last token must be known before the next one can be drawn: penalties count
        it, and a draft continues it. Also true after a lost pass, because pending tokens are rows
        of the pass that was submitted last."""
        if not self._in_flight:
            self._has_lost_pass = False
            return False
        sampled = self._in_flight[-1].built.sampled
        if self._has_lost_pass or (sampled and self._speculator.is_on):
            return True
        return any(request.needs_known_tokens for request in sampled)

    def _submit(self) -> bool:
        """Plan one batch and start it. False if there is nothing to compute now."""
        start = self.clock.now()
        self._recovery.owners = None  # while planning: the request being planned, or all
        drafts = self._speculator.propose(self._scheduler.running, self._recovery.fail_row)
        plan = self._scheduler.schedule(start, drafts)
        self._recovery.owners = ()
        self._recorder.num_preempted += len(plan.preempted)
        scheduled = self.clock.now()
        if not plan.requests:
            return False
        built = self._build(plan)
        work = self._work(built)
        blocks_used, owned_bytes = self.memory.owned()
        prepared = self.clock.now()
        self._recovery.owners = plan.requests
        try:
            handle = self._runner.submit(built.batch)
            self.memory.submitted(built.batch)
            events = self.memory.take_events()
            timed = (start, scheduled - start, prepared - scheduled)
            held = (blocks_used, owned_bytes)
            self._in_flight.append(Flight(plan, built, handle, events, *timed, work, *held))
        except BaseException:
            self.memory.failed()  # a part of the pass may be queued on the device
            self._has_lost_pass = True
            raise
        mark_in_flight(plan, built, start)
        return True

    def _build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of a plan. If that fails, the requests whose rows cannot be built are to
        end."""
        try:
            return self._builder.build(plan)
        except BaseException:
            self._recovery.owners = failing_rows(self._builder, plan) or plan.requests
            raise

    def _work(
        self, built: BuiltBatch, touched: Mapping[tuple[int, str], int] | None = None
    ) -> StepWork:
        """The counted work of a batch."""
        batch = built.batch
        num_logits = batch.num_samples + len(built.prompt_owners)
        return self._counter.count(batch.query_lens, batch.context_lens, num_logits, touched)

    def _collect(self) -> StepTrace:
        """Wait for the oldest batch, commit it, and record the step."""
        flight = self._in_flight[0]
        self._recovery.owners = flight.plan.requests
        try:
            result = self._runner.collect(flight.handle)
        finally:
            self._in_flight.popleft()
            self.memory.collected()
            self._recovery.progress()  # even if all its requests had ended
        if result.touched:
            flight = replace(flight, work=self._work(flight.built, result.touched))
        counts = self._committer.commit(flight, result, self.clock.now())
        self._recovery.owners = ()
        if self._check:
            self.memory.check()
        self._committer.note_cost(flight, result, counts)
        return self._recorder.step_trace(flight, result, counts)

    def repeat(self, until_s: float, token: int, charge: Charge) -> int:
        """Repeat the last step while there is nothing to decide (`engine.repeat`), and draw `token`
        for every request each time; returns the number of repeats. For a runner that computes
        nothing; call it between steps."""
        with GATE, self._recovery.change(()):
            return self._repeater.repeat(until_s, token, charge)

    def audit(self) -> None:
        """Verify that engine, scheduler and memory agree. Raises IntegrityError."""
        self._books.audit()
