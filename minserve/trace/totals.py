"""Totals of a run: every step counts, including those dropped from the ring.

The declaration of a step's field says which total it goes into (`parts.totalling`);
`tally` adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.trace.parts import RoomParts


@dataclass(frozen=True, slots=True)
class RunTotals(RoomParts):
    """Sums and peaks over all steps of a run. Seconds are of the engine's clock."""

    steps: int = 0
    first_start_s: float | None = None
    last_end_s: float | None = None
    busy_s: float = 0.0
    """Seconds spent inside steps; for the rest of the run the engine was idle."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    recomputed_tokens: int = 0
    sampled_tokens: int = 0
    prompt_tokens: int = 0
    """Prompt tokens of the samples that got a token."""
    padded_rows: int = 0
    discarded_tokens: int = 0
    """Rows computed in addition to the tokens, whose results were dropped."""
    compiled_graphs: int = 0
    cached_graphs: int = 0
    """The part of `compiled_graphs` that was found in torch's cache on disk."""
    preemptions: int = 0
    hit_tokens: int = 0
    loaded_tokens: int = 0
    copied_blocks: int = 0
    evicted_blocks: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    exported_blocks: int = 0
    imported_blocks: int = 0
    aborted: int = 0
    arrived: int = 0
    """Prompts that arrived, refused ones included."""
    refused: int = 0
    """Prompts refused because the queue was full."""

    scheduled: int = 0
    """Requests that computed something, summed over steps."""

    peak_running: int = 0
    peak_waiting: int = 0
    peak_kv_bytes_allocated: int = 0
    peak_kv_bytes_used: int = 0
    peak_host_bytes: int = 0

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
