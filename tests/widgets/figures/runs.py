"""Runs to draw: the real engine over a runner without a model, on a virtual clock.

Scheduling, pages and preemption are real; tokens and times are made up, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.fakes import make_engine, run

from minserve import EngineConfig, SamplingParams
from minserve.trace import RunTrace, TraceHeader, TraceSnapshot

DETAIL = {"trace.per_request": True, "trace.pages": True}
SMALL = {
    **DETAIL,
    "memory.block_size": 4,
    "memory.watermark": 0.0,
    "scheduling.max_num_seqs": 4,
    "scheduling.max_num_batched_tokens": 8,
}


def echo_run(
    values: Mapping[str, Any] | None = None,
    prompt_lengths: Sequence[int] = (5, 11, 3, 7),
    max_tokens: Sequence[int] = (9, 6, 12, 8),
    *,
    num_blocks: int = 32,
    provenance: str = "modelled",
) -> RunTrace:
    """A run of requests that all arrive at the start."""
    config = EngineConfig().with_values({**SMALL, **(values or {})})
    engine, _, _ = make_engine(config, num_blocks=num_blocks)
    for number, (length, limit) in enumerate(zip(prompt_lengths, max_tokens, strict=True)):
        prompt = [1 + (number * 7 + place) % 90 for place in range(length)]
        params = SamplingParams(max_tokens=limit, temperature=0.0, ignore_eos=True)
        engine.add(f"request-{number}", prompt, params)
    run(engine)
    engine.trace.header = TraceHeader(
        model="echo",
        config=engine.config.config.to_dict(),
        device="a virtual device",
        versions={"minserve": "0.1.0"},
        date="2026-11-21",
        provenance=provenance,  # type: ignore[arg-type]
    )
    return engine.trace


def preempting_run() -> RunTrace:
    """A pool so small that requests lose their pages and compute tokens again."""
    trace = echo_run(num_blocks=8, prompt_lengths=(5, 6, 3, 7), max_tokens=(14, 12, 16, 9))
    assert trace.totals.preemptions
    return trace


def without_cache() -> RunTrace:
    """Every step computes all tokens again."""
    return echo_run(
        {"memory.kv_cache": False, "scheduling.max_num_batched_tokens": None}, (6,), (10,)
    )


def with_cache() -> RunTrace:
    """The same request, keeping keys and values."""
    return echo_run({}, (6,), (10,))


def without_detail(trace: RunTrace) -> TraceSnapshot:
    """The same run as if nobody had asked for per-request detail."""
    snapshot = trace.snapshot()
    return replace(snapshot, steps=tuple(replace(s, requests=()) for s in snapshot.steps))


def without_metrics() -> TraceSnapshot:
    """A run that ended without a finished request to read latencies from."""
    return replace(echo_run().snapshot(), requests=())


def many_requests(count: int = 60) -> RunTrace:
    """More requests, steps and tokens than a figure of `FEW_MARKS` can carry, of many lengths."""
    return echo_run(
        {"scheduling.max_num_seqs": 6, "scheduling.max_num_batched_tokens": 24},
        [3 + 11 * n % 17 for n in range(count)],
        [60 if n == count // 2 else 2 + 7 * n % 23 for n in range(count)],
        num_blocks=96,
    )


def half(whole: TraceSnapshot) -> TraceSnapshot:
    """The run as it stood after half of its steps."""
    steps = whole.steps[: len(whole.steps) // 2]
    ended = tuple(r for r in whole.requests if (r.metrics.finished_s or 0.0) <= steps[-1].end_s)
    partial = RunTrace(header=whole.header)
    for step in steps:
        partial.append(step)
    for one in ended:
        partial.finish_request(one.request_id, one.sample_index, one.metrics, one.finish_reason)
    return partial.snapshot()


def sharing_run() -> RunTrace:
    """Two samples of one prompt, whose last page is half full, beside a request of its own."""
    config = EngineConfig().with_values({**SMALL, "scheduling.max_num_batched_tokens": 32})
    engine, _, _ = make_engine(config, num_blocks=32)
    for number, (length, samples) in enumerate(((10, 2), (6, 1))):
        params = SamplingParams(n=samples, max_tokens=8, temperature=0.9, seed=1, ignore_eos=True)
        engine.add(f"request-{number}", [1 + number + n for n in range(length)], params)
    run(engine)
    engine.trace.header = TraceHeader(model="echo", config=engine.config.config.to_dict())
    return engine.trace
