"""The quantities a panel can compare, each read from a run's trace and defined in one place.

Latencies and rates are measured by the trace's clock; sizes and counts are counted. Knows nothing
about how the runs were made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minserve.trace import Distribution, RunTrace
from widgets import theme
from widgets.panels.verdict import Better


@dataclass(frozen=True)
class Metric:
    """One quantity of a run. A chapter may bring its own."""

    name: str
    label: str
    better: Better
    read: Callable[[RunTrace], float | None]
    """None where the run says nothing about it."""
    show: Callable[[float], str]
    counted: bool = False
    """True where the value is a count, equal in every run of the same schedule."""
    words: tuple[str, str] = ("is better", "is worse")
    """What the gaining and the losing side does: ("is faster", "is slower")."""


_SPEED = ("is faster", "is slower")


def _latency(
    name: str, label: str, pick: Callable[[RunTrace], Distribution | None], part: str
) -> Metric:
    def read(trace: RunTrace) -> float | None:
        found = pick(trace)
        return None if found is None else getattr(found, part)

    return Metric(name, label, "lower", read, theme.format_seconds, words=_SPEED)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("output_tokens_per_s", "output tokens/s", "higher",
               lambda trace: trace.summary().output_tokens_per_s or None, theme.format_rate,
               words=_SPEED),
        Metric("duration_s", "time for the whole workload", "lower",
               lambda trace: trace.totals.duration_s or None, theme.format_seconds, words=_SPEED),
        _latency("ttft_p50_s", "time to first token, median", lambda t: t.summary().ttft_s, "p50"),
        _latency("ttft_p99_s", "time to first token, p99", lambda t: t.summary().ttft_s, "p99"),
        _latency("tpot_p50_s", "time per output token, median", lambda t: t.summary().tpot_s,
                 "p50"),
        _latency("tpot_p99_s", "time per output token, p99", lambda t: t.summary().tpot_s, "p99"),
        _latency("e2e_mean_s", "end-to-end latency, mean", lambda t: t.summary().e2e_s, "mean"),
        _latency("e2e_max_s", "end-to-end latency, worst", lambda t: t.summary().e2e_s, "max"),
        _latency("e2e_p50_s", "end-to-end latency, median", lambda t: t.summary().e2e_s, "p50"),
        _latency("e2e_p99_s", "end-to-end latency, p99", lambda t: t.summary().e2e_s, "p99"),
        # Between deliveries to one request: the stalls a reader of the text would see.
        _latency("itl_p99_s", "time between tokens, p99", lambda t: t.summary().itl_s, "p99"),
        _latency("itl_max_s", "longest stall between two tokens", lambda t: t.summary().itl_s,
                 "max"),
        Metric("peak_kv_bytes", "KV bytes allocated, peak", "lower",
               lambda trace: float(trace.totals.peak_kv_bytes_allocated), theme.format_bytes,
               counted=True, words=("takes less memory", "takes more memory")),
        Metric("peak_kv_bytes_used", "KV bytes used, peak", "lower",
               lambda trace: float(trace.totals.peak_kv_bytes_used), theme.format_bytes,
               counted=True, words=("takes less memory", "takes more memory")),
        Metric("steps", "engine steps", "lower", lambda trace: float(trace.totals.steps),
               lambda value: theme.format_count(round(value), "step"), counted=True,
               words=("takes fewer steps", "takes more steps")),
        Metric("flops", "arithmetic", "lower", lambda trace: float(trace.totals.flops),
               theme.format_flops, counted=True,
               words=("does less arithmetic", "does more arithmetic")),
        Metric("bytes", "memory traffic", "lower", lambda trace: float(trace.totals.bytes),
               theme.format_bytes, counted=True, words=("moves fewer bytes", "moves more bytes")),
    )
}  # fmt: skip
"""By name. `itl_*` need `trace.per_request`, which panels switch on by themselves."""


def find_metric(metric: str | Metric) -> Metric:
    """A metric by name, or the one given. Raises ValueError for an unknown name."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; known: {', '.join(METRICS)}")
    return METRICS[metric]
