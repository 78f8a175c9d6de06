"""Running totals of a run: every step counts, also those that fell out of the ring.

Added to at every step, so plain attributes and no allocation.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.request import RequestMetrics
from minserve.trace.step import StepTrace


@dataclass(slots=True)
class RunTotals:
    """Sums and peaks over all steps of a run. Seconds are of the engine's clock."""

    steps: int = 0
    first_start_s: float | None = None
    last_end_s: float | None = None
    busy_s: float = 0.0
    """Seconds spent inside steps; the rest of the run the engine was idle."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    recomputed_tokens: int = 0
    sampled_tokens: int = 0
    padded_rows: int = 0
    discarded_tokens: int = 0
    """Rows computed beside the tokens, whose results were dropped."""
    compiled_graphs: int = 0
    cached_graphs: int = 0
    """Of those, graphs found in torch's cache on disk."""
    preemptions: int = 0
    hit_tokens: int = 0
    loaded_tokens: int = 0
    copied_blocks: int = 0
    evicted_blocks: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    aborted: int = 0
    scheduled: int = 0
    """Requests that computed something, summed over steps."""

    peak_running: int = 0
    peak_waiting: int = 0
    peak_kv_bytes_allocated: int = 0
    peak_kv_bytes_used: int = 0

    schedule_s: float = 0.0
    transfer_s: float = 0.0
    prepare_s: float = 0.0
    forward_s: float = 0.0
    attention_s: float = 0.0
    compile_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0

    linear_flops: int = 0
    attention_flops: int = 0
    weight_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0
    activation_bytes: int = 0

    finished_requests: int = 0
    finished_prompt_tokens: int = 0
    finished_output_tokens: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds from the first step's start to the last step's end; 0 before any step."""
        if self.first_start_s is None or self.last_end_s is None:
            return 0.0
        return self.last_end_s - self.first_start_s

    @property
    def flops(self) -> int:
        """Arithmetic of all steps."""
        return self.linear_flops + self.attention_flops

    @property
    def bytes(self) -> int:
        """Least memory traffic of all steps."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes + self.activation_bytes

    def add_step(self, step: StepTrace) -> None:
        """Count one more step."""
        if self.first_start_s is None:
            self.first_start_s = step.start_s
        self.last_end_s = step.end_s
        self.steps += 1
        self.busy_s += step.end_s - step.start_s
        self.prefill_tokens += step.num_prefill_tokens
        self.decode_tokens += step.num_decode_tokens
        self.recomputed_tokens += step.num_recomputed_tokens
        self.sampled_tokens += step.num_sampled_tokens
        self.padded_rows += step.num_padded_rows
        self.discarded_tokens += step.num_discarded_tokens
        self.compiled_graphs += step.num_compiled_graphs
        self.cached_graphs += step.num_cached_graphs
        self.preemptions += step.num_preempted
        self.aborted += step.num_aborted
        self.scheduled += step.num_scheduled
        # Comparisons, not max(): three times cheaper, and this runs at every step.
        if step.num_running > self.peak_running:
            self.peak_running = step.num_running
        if step.num_waiting > self.peak_waiting:
            self.peak_waiting = step.num_waiting
        if step.kv_bytes_allocated > self.peak_kv_bytes_allocated:
            self.peak_kv_bytes_allocated = step.kv_bytes_allocated
        if step.kv_bytes_used > self.peak_kv_bytes_used:
            self.peak_kv_bytes_used = step.kv_bytes_used
        stages, work, pages = step.stages, step.work, step.pages
        self.hit_tokens += pages.hit_tokens
        self.loaded_tokens += pages.loaded_tokens
        self.copied_blocks += pages.copied_blocks
        self.evicted_blocks += pages.evicted_blocks
        self.swapped_out_blocks += pages.swapped_out_blocks
        self.swapped_in_blocks += pages.swapped_in_blocks
        self.schedule_s += stages.schedule_s
        self.transfer_s += stages.transfer_s
        self.prepare_s += stages.prepare_s
        self.forward_s += stages.forward_s
        self.attention_s += stages.attention_s
        self.compile_s += stages.compile_s
        self.sample_s += stages.sample_s
        self.commit_s += stages.commit_s
        self.linear_flops += work.linear_flops
        self.attention_flops += work.attention_flops
        self.weight_bytes += work.weight_bytes
        self.kv_read_bytes += work.kv_read_bytes
        self.kv_write_bytes += work.kv_write_bytes
        self.activation_bytes += work.activation_bytes

    def add_request(self, metrics: RequestMetrics) -> None:
        """Count one more finished request."""
        self.finished_requests += 1
        self.finished_prompt_tokens += metrics.num_prompt_tokens
        self.finished_output_tokens += metrics.num_output_tokens
