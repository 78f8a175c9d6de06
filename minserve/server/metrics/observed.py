"""Histograms that grow with what is read from a trace, each step and each request once."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from minserve.request import FinishReason
from minserve.server.metrics.names import OBSERVED
from minserve.trace import FinishedRequest, StepTrace


class Histogram:
    """Counts of values by bucket, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        """Largest value of each bucket but the last, ascending."""
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Add `count` equal values."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's buckets: (bound, how many values are at most that)."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Observed:
    """The histograms of one engine by name, and how its requests ended."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while something is read in; take it to see all histograms at one moment."""
        self.histograms = {metric.name: Histogram(metric.buckets) for metric in OBSERVED}
        self.ended: Counter[FinishReason] = Counter()
        """Requests (every sample is one) by the reason of their end."""

    def read_step(self, step: StepTrace) -> None:
        """Add a step's waits, and its size."""
        made = self.histograms
        with self.lock:
            made["minserve:step_duration_seconds"].observe(step.end_s - step.start_s)
            made["vllm:iteration_tokens_total"].observe(step.num_tokens)
            for gap_s in step.interarrival_s:
                made["minserve:request_interarrival_seconds"].observe(gap_s)
            for wait_s in step.ttft_s:
                made["vllm:time_to_first_token_seconds"].observe(wait_s)
            for wait_s, count in zip(step.itl_s, step.itl_counts, strict=True):
                made["vllm:inter_token_latency_seconds"].observe(wait_s, count)

    def read_request(self, request: FinishedRequest) -> None:
        """Add a request's size and times. Times that its end cut short are left out: those of an
        aborted or failed request say nothing about the service."""
        made, metrics = self.histograms, request.metrics
        scheduled_s, first_s = metrics.first_scheduled_s, metrics.first_token_s
        with self.lock:
            self.ended[request.finish_reason] += 1
            made["vllm:request_prompt_tokens"].observe(metrics.num_prompt_tokens)
            made["vllm:request_generation_tokens"].observe(metrics.num_output_tokens)
            times = {"request_queue_time": metrics.queue_s}
            if scheduled_s is not None and first_s is not None:
                times["request_prefill_time"] = first_s - scheduled_s
            if request.finish_reason in ("stop", "length") and metrics.finished_s is not None:
                times["e2e_request_latency"] = metrics.e2e_s
                times["request_time_per_output_token"] = metrics.tpot_s
                if scheduled_s is not None and first_s is not None:
                    times["request_inference_time"] = metrics.finished_s - scheduled_s
                    times["request_decode_time"] = metrics.finished_s - first_s
            for name, seconds in times.items():
                if seconds is not None:
                    made[f"vllm:{name}_seconds"].observe(seconds)
