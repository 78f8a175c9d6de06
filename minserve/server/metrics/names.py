"""All metrics by name: kind, what it counts, labels, buckets.

Names without the endings that Prometheus adds to them: `_total` to a counter, `_bucket`, `_sum` and
`_count` to a histogram.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

COMMON_LABELS = ("model_name", "engine")
"""Labels of every metric, as in vLLM; `engine` is the number of the replica."""

WAITS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_TIMES_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_TIMES_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0,
    10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
STEP_TOKENS = tuple(float(1 << power) for power in (0, *range(3, 15)))
REQUEST_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Metric:
    """One metric, as `/metrics` tells it."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    """Labels beside `COMMON_LABELS`."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, without infinity."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        ends = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(self.name + end for end in ends[self.kind])


def _seconds(name: str, text: str, buckets: tuple[float, ...] = REQUEST_TIMES_S) -> Metric:
    return Metric(f"{name}_seconds", "histogram", text, buckets=buckets)


OBSERVED = (
    _seconds("vllm:time_to_first_token", "From arrival to the first token.", WAITS_S),
    _seconds(
        "vllm:inter_token_latency",
        "Between two deliveries of tokens to the same request.",
        TOKEN_TIMES_S,
    ),
    _seconds(
        "vllm:request_time_per_output_token",
        "Mean time of a request per output token after its first.",
        TOKEN_TIMES_S,
    ),
    _seconds("vllm:e2e_request_latency", "From arrival to the end; requests not cut short."),
    _seconds("vllm:request_queue_time", "From arrival to the first step that computed something."),
    _seconds("vllm:request_inference_time", "From the first step to the end."),
    _seconds("vllm:request_prefill_time", "From the first step to the first token."),
    _seconds("vllm:request_decode_time", "From the first token to the end."),
    _seconds("minserve:request_interarrival", "Between two arrivals.", WAITS_S),
    _seconds("minserve:step_duration", "One step of the engine.", WAITS_S),
    Metric(
        "vllm:request_prompt_tokens",
        "histogram",
        "Prompt tokens of a request that ended.",
        buckets=REQUEST_TOKENS,
    ),
    Metric(
        "vllm:request_generation_tokens",
        "histogram",
        "Output tokens of a request that ended.",
        buckets=REQUEST_TOKENS,
    ),
    Metric(
        "vllm:iteration_tokens_total",
        "histogram",
        "Tokens that one step computed.",
        buckets=STEP_TOKENS,
    ),
)
"""The histograms, filled by `observed`."""

READ = (
    Metric("vllm:num_requests_running", "gauge", "Requests that hold a place in the batch."),
    Metric("vllm:num_requests_waiting", "gauge", "Requests that wait, preempted ones included."),
    Metric("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache that is owned, 0 to 1."),
    Metric(
        "vllm:cache_config_info",
        "gauge",
        "Always 1; its labels say how the KV cache is set up.",
        ("block_size", "num_gpu_blocks", "enable_prefix_caching"),
    ),
    Metric("vllm:prefix_cache_queries", "counter", "Tokens that were looked up in a cache."),
    Metric("vllm:prefix_cache_hits", "counter", "Tokens that were found there."),
    Metric("vllm:num_preemptions", "counter", "Requests preempted."),
    Metric("vllm:prompt_tokens", "counter", "Prompt tokens of the requests that got a token."),
    Metric("vllm:generation_tokens", "counter", "Tokens generated."),
    Metric(
        "vllm:request_success", "counter", "Requests that ended, by reason.", ("finished_reason",)
    ),
    Metric("vllm:spec_decode_num_drafts", "counter", "Drafts verified."),
    Metric("vllm:spec_decode_num_draft_tokens", "counter", "Tokens proposed in drafts."),
    Metric("vllm:spec_decode_num_accepted_tokens", "counter", "Proposed tokens accepted."),
    Metric(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "Proposed tokens accepted, by their place in the draft.",
        ("position",),
    ),
    Metric("minserve:request_arrivals", "counter", "Prompts that arrived, refused ones included."),
    Metric("minserve:request_refused", "counter", "Prompts refused because the queue was full."),
    Metric("minserve:kv_cache_bytes", "gauge", "KV cache: reserved, owned, used.", ("state",)),
    Metric("minserve:evicted_blocks", "counter", "Cached pages given to another request."),
    Metric("minserve:recomputed_tokens", "counter", "Tokens computed again."),
    Metric("minserve:engine_steps", "counter", "Steps of the engine."),
    Metric("minserve:engine_busy_seconds", "counter", "Time inside steps."),
    Metric("minserve:stage_seconds", "counter", "Time inside steps, by stage.", ("stage",)),
    Metric("minserve:flops", "counter", "Arithmetic of all steps, counted from shapes."),
    Metric("minserve:traffic_bytes", "counter", "Least memory traffic of all steps, counted."),
)
PRICED = (
    Metric("minserve:price_per_hour", "gauge", "What this machine costs, as it was given."),
    Metric("minserve:cost", "counter", "Price times the time since the start, idle or not."),
    Metric(
        "minserve:cost_per_million_tokens",
        "gauge",
        "Cost so far per million tokens: generated ones, or with those of prompts.",
        ("tokens",),
    ),
)
"""Only with a price."""

METRICS = {metric.name: metric for metric in (*OBSERVED, *READ, *PRICED)}


def all_series() -> Iterator[str]:
    """Every name that Prometheus stores for an engine with a price."""
    for metric in METRICS.values():
        yield from metric.series
