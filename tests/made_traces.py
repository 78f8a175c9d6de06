"""Traces made by hand, for tests of what reads them."""

from __future__ import annotations

from minserve.request import RequestMetrics
from minserve.trace import RequestStep, RunTrace, StageTimes, StepTrace, StepWork, TraceHeader


def make_step(index: int, *, detail: bool = False, sampled: int = 2) -> StepTrace:
    start = 10.0 + index * 0.1
    parts = tuple(
        RequestStep(
            f"r{row}",
            0,
            start=index,
            num_tokens=1,
            num_recomputed=index % 2,
            new_token_ids=(7 + row,),
            blocks=(row, row + 1),
        )
        for row in range(sampled)
    )
    return StepTrace(
        index=index, start_s=start, end_s=start + 0.05,
        stages=StageTimes(0.001, 0.002, 0.03, 0.01, 0.004, 0.005),
        work=StepWork(100 + index, 10, 1000, 20, 30, 40),
        num_waiting=index % 3, num_running=sampled, num_scheduled=sampled, num_prefill_tokens=5,
        num_decode_tokens=sampled, num_recomputed_tokens=1, num_sampled_tokens=sampled,
        num_preempted=index % 2, num_finished=0, num_aborted=0, blocks_total=8, blocks_used=4,
        kv_tokens=30 + index, kv_bytes_reserved=4096, kv_bytes_allocated=2048 + index,
        kv_bytes_used=1024 + index, requests=parts if detail else (),
    )  # fmt: skip


def make_metrics(number: int) -> RequestMetrics:
    return RequestMetrics(
        arrival_s=10.0, first_scheduled_s=10.1, first_token_s=10.2 + 0.01 * number,
        finished_s=11.2 + 0.03 * number, num_prompt_tokens=10, num_output_tokens=11,
        num_preemptions=0,
    )  # fmt: skip


def make_trace(steps: int = 6, requests: int = 3, **options: bool) -> RunTrace:
    header = TraceHeader(
        model="zoo/base", config={"dtype": "float32", "memory.kv_bytes": None}, device="a CPU",
        versions={"torch": "2"}, date="2026-11-21", notes=("made by hand",),
    )  # fmt: skip
    trace = RunTrace(max_steps=100, header=header)
    for index in range(steps):
        trace.append(make_step(index, **options))
    for number in range(requests):
        trace.finish_request(f"r{number}", 0, make_metrics(number), "length")
    return trace
