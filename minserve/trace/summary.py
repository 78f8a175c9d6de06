"""The usual figures of a run (latencies, throughput, memory), each defined once.

TTFT counts from arrival; TPOT is (end-to-end - TTFT) / (n - 1) per request; ITL is the time
between two deliveries of tokens to the same request. Percentiles interpolate linearly, as
in numpy and vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minserve.trace.snapshot import TraceSnapshot
from minserve.trace.step import StepTrace


@dataclass(frozen=True, slots=True)
class Distribution:
    """Statistics of a set of measurements, in the measurements' own unit."""

    count: int
    mean: float
    std: float
    """Population standard deviation."""
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile of ascending values, linearly interpolated.

    Raises ValueError if there are no values.
    """
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Statistics of the values; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    return Distribution(
        count=len(ordered),
        mean=mean,
        std=math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered)),
        min=ordered[0],
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def inter_token_latencies(steps: Sequence[StepTrace]) -> list[float]:
    """Seconds between consecutive deliveries to the same sample, in order of the later one."""
    return [gap for _, gap in inter_token_gaps(steps)]


def inter_token_gaps(steps: Sequence[StepTrace]) -> list[tuple[float, float]]:
    """(when, seconds since the sample's delivery before) for every delivery but a sample's first.

    A delivery is a step that added tokens to the sample. Empty without `TraceConfig.per_request`.
    """
    last: dict[tuple[str, int], float] = {}
    gaps: list[tuple[float, float]] = []
    for step in steps:
        for part in step.requests:
            if not part.new_token_ids:
                continue
            key = (part.request_id, part.sample_index)
            before = last.get(key)
            if before is not None:
                gaps.append((step.end_s, step.end_s - before))
            last[key] = step.end_s
    return gaps


@dataclass(frozen=True)
class RunSummary:
    """A run in figures. Distributions are over the kept finished requests, counters over all steps;
    a distribution is None if nothing was measured."""

    steps: int
    duration_s: float
    """First step's start to last step's end."""
    busy_s: float
    finished_requests: int
    prompt_tokens: int
    """Prompt tokens of finished requests."""
    output_tokens: int
    """Tokens added to requests by all steps."""
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Tokens computed (prompt, recomputation, newest and proposed) per second."""
    preemptions: int
    recomputed_tokens: int
    cached_tokens: int
    """Tokens not computed, because the device, the host or the disk held them."""
    proposed_tokens: int
    """Tokens that a proposer drafted and the model verified."""
    accepted_tokens: int
    """Of these, tokens that became part of an output."""
    mean_batch: float
    """Requests that computed something, averaged over steps."""
    peak_kv_bytes: int
    """Most bytes of pages owned in a step."""
    peak_kv_bytes_used: int
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    """None without `TraceConfig.per_request`."""
    e2e_s: Distribution | None
    provenance: str

    def __str__(self) -> str:
        lines = [
            f"{self.finished_requests} requests, {self.output_tokens} tokens out in "
            f"{self.duration_s:.3g} s ({self.provenance}): {self.output_tokens_per_s:.4g} output "
            f"tokens/s over {self.steps} steps, {self.mean_batch:.3g} requests a step"
        ]
        for name, values in (("TTFT", self.ttft_s), ("TPOT", self.tpot_s), ("ITL", self.itl_s)):
            if values is not None:
                lines.append(
                    f"{name} median {values.p50 * 1e3:.4g} ms, p99 {values.p99 * 1e3:.4g} ms"
                )
        lines.append(
            f"KV cache at most {self.peak_kv_bytes / 1e6:.4g} MB; {self.preemptions} preemptions"
        )
        if self.cached_tokens:
            lines.append(f"{self.cached_tokens} tokens found in a cache")
        if self.proposed_tokens:
            lines.append(
                f"{self.accepted_tokens} of {self.proposed_tokens} proposed tokens accepted"
            )
        return "\n".join(lines)


def summarize(trace: TraceSnapshot) -> RunSummary:
    """The figures of a trace."""
    totals = trace.totals
    metrics = [request.metrics for request in trace.requests]
    seconds = totals.duration_s
    return RunSummary(
        steps=totals.steps,
        duration_s=seconds,
        busy_s=totals.busy_s,
        finished_requests=totals.finished_requests,
        prompt_tokens=totals.finished_prompt_tokens,
        output_tokens=totals.sampled_tokens,
        output_tokens_per_s=totals.sampled_tokens / seconds if seconds > 0 else 0.0,
        total_tokens_per_s=(
            (totals.prefill_tokens + totals.decode_tokens) / seconds if seconds > 0 else 0.0
        ),
        preemptions=totals.preemptions,
        recomputed_tokens=totals.recomputed_tokens,
        cached_tokens=totals.hit_tokens + totals.loaded_tokens,
        proposed_tokens=sum(totals.speculation.proposed_tokens),
        accepted_tokens=sum(totals.speculation.accepted_tokens),
        mean_batch=totals.scheduled / totals.steps if totals.steps else 0.0,
        peak_kv_bytes=totals.peak_kv_bytes_allocated,
        peak_kv_bytes_used=totals.peak_kv_bytes_used,
        ttft_s=distribution([m.ttft_s for m in metrics if m.ttft_s is not None]),
        tpot_s=distribution([m.tpot_s for m in metrics if m.tpot_s is not None]),
        itl_s=distribution(inter_token_latencies(trace.steps)),
        e2e_s=distribution([m.e2e_s for m in metrics if m.e2e_s is not None]),
        provenance=trace.header.provenance,
    )
