"""What one engine step tells: a `StepTrace`, with its counted work, its times by stage, its pages.

Counters are always there; per-request detail is kept when asked for. Knows nothing about how
steps are made, nor how they are collected.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepWork:
    """Arithmetic and memory traffic of one step, counted from shapes, not measured.

    A multiply-add is 2 FLOPs. Bytes are the least a step must move: each weight once, each cached
    key and value read once per request and layer, new ones written once.
    """

    linear_flops: int = 0
    """Projections, feed-forwards and the unembedding."""
    attention_flops: int = 0
    """Scores and weighted sums over the context."""
    weight_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0
    activation_bytes: int = 0
    """Residual stream, projections' inputs and outputs, logits: written and read once each."""

    @property
    def flops(self) -> int:
        """All arithmetic."""
        return self.linear_flops + self.attention_flops

    @property
    def bytes(self) -> int:
        """All traffic."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one step by stage."""

    schedule_s: float = 0.0
    """Deciding who computes how many tokens, pages included."""
    transfer_s: float = 0.0
    """Copies of pages, between tiers too: a part of `schedule_s`. On a GPU only queueing them."""
    prepare_s: float = 0.0
    """Building the batch's tensors."""
    forward_s: float = 0.0
    """Decoder layers (attention included) and logits."""
    attention_s: float = 0.0
    """Attention's part of `forward_s`, rotation and the store into pages included; 0 on a GPU
    and in a replayed step, where it is not timed apart."""
    sample_s: float = 0.0
    """Logits to tokens, the wait for the device included."""
    commit_s: float = 0.0
    """Tokens to requests: stop conditions, text, freed pages."""
    compile_s: float = 0.0
    """The part of `forward_s` that compiled, or captured graphs: the first step of its kind."""


@dataclass(frozen=True, slots=True)
class StepPages:
    """What became of pages in one step, and what their bytes are good for when it ends.

    `owned_bytes` is `StepTrace.kv_bytes_used` + `future_bytes` + `internal_bytes`: the division of
    Kwon et al. (arXiv 2309.06180, figure 2). What several requests share counts once.
    """

    hit_tokens: int = 0
    """Tokens not computed because a device page held them."""
    loaded_tokens: int = 0
    """Tokens not computed because the host or the disk held them."""
    copied_blocks: int = 0
    """Pages copied because two requests agree on a part of them only."""
    evicted_blocks: int = 0
    """Cached pages given to somebody else."""
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    cached_blocks: int = 0
    """Pages nobody owns, kept for a prefix hit."""
    owned_bytes: int = 0
    """Bytes of pages with an owner."""
    future_bytes: int = 0
    """Of those, slots their request may still fill: reserved."""
    internal_bytes: int = 0
    """Of those, slots beyond anything their request may reach: internal fragmentation."""
    external_bytes: int = 0
    """Free bytes that the first waiting request cannot use, because its pages must be neighbours
    and no hole is large enough: external fragmentation."""


@dataclass(frozen=True, slots=True)
class RequestStep:
    """What one step did for one request; kept when `TraceConfig.per_request` is on."""

    request_id: str
    sample_index: int
    start: int
    """Position of the first token computed."""
    num_tokens: int
    """Tokens computed."""
    num_recomputed: int
    """Of those, tokens that had been computed before (after preemption, or without a cache)."""
    new_token_ids: tuple[int, ...]
    """Tokens this step added to the request."""
    blocks: tuple[int, ...] = ()
    """Pages held during the step, when `TraceConfig.pages` is on."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One engine step: who computed what, what it held, what it cost."""

    index: int
    start_s: float
    """Seconds of the engine's clock."""
    end_s: float
    stages: StageTimes
    work: StepWork
    num_waiting: int
    """Requests waiting after scheduling, preempted ones included."""
    num_running: int
    """Requests holding a place after scheduling."""
    num_scheduled: int
    """Requests that computed something."""
    num_prefill_tokens: int
    """Tokens computed that are not the request's newest one: prompt or recomputation."""
    num_decode_tokens: int
    """Newest tokens computed: one per request that had caught up."""
    num_recomputed_tokens: int
    """Tokens computed that had been computed before."""
    num_sampled_tokens: int
    """Tokens added to requests."""
    num_preempted: int
    num_finished: int
    num_aborted: int
    """Requests aborted since the step before."""
    blocks_total: int
    blocks_used: int
    """Pages owned by requests while the step ran."""
    kv_tokens: int
    """Tokens whose keys and values are kept when the step ends."""
    kv_bytes_reserved: int
    """Bytes of the whole pool."""
    kv_bytes_allocated: int
    """Bytes of the pages owned while the step ran."""
    kv_bytes_used: int
    """Bytes of the tokens kept when the step ends."""
    pages: StepPages = StepPages()
    requests: tuple[RequestStep, ...] = ()
    cached_pages: tuple[int, ...] = ()
    """Pages nobody owns when the step ends, kept for a prefix hit; with `TraceConfig.pages`."""
    num_padded_rows: int = 0
    """Rows computed beside the tokens, whose results are dropped; `work` counts them too."""
    num_compiled_graphs: int = 0
    """Graphs that were compiled in this step, or read from torch's cache, or captured."""
    num_cached_graphs: int = 0
    """Of those, graphs whose machine code was found in torch's cache on disk."""
    num_discarded_tokens: int = 0
    """Tokens computed beside `num_tokens` for requests that ended while the step was in flight;
    `work` counts them too."""

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return self.num_prefill_tokens + self.num_decode_tokens

    @property
    def num_rows(self) -> int:
        """Rows computed: tokens, those computed in vain, and padding."""
        return self.num_tokens + self.num_discarded_tokens + self.num_padded_rows
