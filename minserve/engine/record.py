"""Fills a step's `StepTrace` from the flight, the runner's result and the counts.

Reads the state of scheduler and memory; changes nothing but the trace.
"""

from __future__ import annotations

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.engine.flight import CommitCounts, DraftCounts, Flight
from minserve.execution.runner import StepResult
from minserve.memory import KVManager, MemoryEvents, MemoryUse
from minserve.scheduling import Scheduler
from minserve.trace import RunTrace, Speculation, StageTimes, StepBlocks, StepTrace
from minserve.trace.parts.speculation import NO_SPECULATION


class Recorder:
    """Writes the trace of one engine."""

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        scheduler: Scheduler,
        clock: Clock,
        trace: RunTrace,
    ) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self._clock = clock
        self.trace = trace
        """May be replaced between two steps."""
        self._keeps_blocks = config.config.trace.per_request and config.config.trace.pages
        self.token_bytes = config.model.kv_bytes_per_token(config.itemsize)
        self.num_aborted = 0
        """Requests aborted since the last step; the next step's trace reports them."""
        self.num_refused = 0
        """Prompts refused since the last step, because the queue was full."""
        self.num_arrived = 0
        """Prompts that arrived since the last step, refused ones included."""
        self.interarrival_s: list[float] = []
        """Times between them, and between the first of them and the one before."""
        self._last_arrival_s: float | None = None
        self.num_preempted = 0
        """Requests preempted since the last step was recorded."""
        self.end_s = float("-inf")
        """End of the last step."""
        self.last: StepTrace | None = None
        """The last step, whichever trace it is in."""
        self.num_steps = 0

    def step_trace(self, flight: Flight, result: StepResult, counts: CommitCounts) -> StepTrace:
        """Record one step that was collected and committed."""
        use, events = self._memory.use(), flight.events + self._memory.take_events()
        step = StepTrace(
            index=self.num_steps,
            # Overlapping steps are recorded one after the other: each begins where the one before
            # ended.
            start_s=max(flight.start_s, self.end_s),
            end_s=self._clock.now(),
            stages=self._stages(flight, result, counts, events),
            work=flight.work,
            num_waiting=self._scheduler.num_waiting,
            num_running=len(self._scheduler.running),
            num_scheduled=len(flight.plan.requests),
            num_prefill_tokens=counts.num_prefill,
            num_decode_tokens=counts.num_decode,
            num_recomputed_tokens=counts.num_recomputed,
            num_sampled_tokens=counts.num_sampled,
            num_preempted=self.num_preempted,
            num_finished=counts.num_finished,
            num_aborted=self.num_aborted,
            num_refused=self.num_refused,
            num_arrived=self.num_arrived,
            interarrival_s=tuple(self.interarrival_s),
            blocks_total=use.blocks_total,
            blocks_used=flight.blocks_used,
            kv_tokens=use.kv_tokens,
            kv_bytes_reserved=use.total_bytes,
            kv_bytes_allocated=flight.owned_bytes,
            kv_bytes_used=use.kv_bytes,
            blocks=self._step_blocks(use, events),
            requests=tuple(counts.details),
            cached_block_ids=self._memory.pool.cached_blocks() if self._keeps_blocks else (),
            num_padded_rows=flight.built.batch.num_tokens - flight.num_tokens,
            num_discarded_tokens=counts.num_discarded,
            num_compiled_graphs=result.num_compiled_graphs,
            num_cached_graphs=result.num_cached_graphs,
            num_prompt_tokens=counts.num_prompt,
            ttft_s=tuple(counts.ttft_s),
            itl_s=tuple(counts.collected_s - before for before in counts.waited_since),
            itl_counts=tuple(counts.waited_since.values()),
            speculation=_speculation(counts.drafts) if counts.drafts else NO_SPECULATION,
        )
        self.append(step)
        for sentence in self._memory.take_notes():
            self.trace.note(sentence)
        return step

    def note_arrival(self, arrival_s: float) -> None:
        """Count a prompt that arrived; the next step's trace reports it."""
        if self._last_arrival_s is not None:
            self.interarrival_s.append(max(0.0, arrival_s - self._last_arrival_s))
        self._last_arrival_s = arrival_s
        self.num_arrived += 1

    def append(self, step: StepTrace) -> None:
        """Add a step to the trace and reset the counts since the last step."""
        self.num_steps = step.index + 1
        self.num_aborted = self.num_preempted = self.num_refused = self.num_arrived = 0
        self.interarrival_s.clear()
        self.end_s = step.end_s
        self.last = step
        self.trace.append(step)

    def _stages(
        self, flight: Flight, result: StepResult, counts: CommitCounts, events: MemoryEvents
    ) -> StageTimes:
        return StageTimes(
            schedule_s=flight.schedule_s,
            transfer_s=events.transfer_s,
            prepare_s=flight.prepare_s,
            forward_s=result.forward_s,
            attention_s=result.attention_s,
            compile_s=result.compile_s,
            sample_s=result.sample_s,
            commit_s=self._clock.now() - counts.collected_s,
        )

    def _step_blocks(self, use: MemoryUse, events: MemoryEvents) -> StepBlocks:
        return StepBlocks(
            hit_tokens=events.hit_tokens,
            loaded_tokens=events.loaded_tokens,
            copied_blocks=events.copied_blocks,
            evicted_blocks=events.evicted_blocks,
            swapped_out_blocks=events.swapped_out_blocks,
            swapped_in_blocks=events.swapped_in_blocks,
            exported_blocks=events.exported_blocks,
            imported_blocks=events.imported_blocks,
            cached_blocks=use.blocks_cached,
            host_bytes=use.host_bytes,
            owned_bytes=use.owned_bytes,
            future_bytes=use.future_bytes,
            internal_bytes=use.internal_bytes,
            external_bytes=self._scheduler.stranded_slots() * self.token_bytes,
        )


def _speculation(counts: DraftCounts) -> Speculation:
    return Speculation(counts.num_drafts, tuple(counts.proposed), tuple(counts.accepted))
