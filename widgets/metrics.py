"""The quantities a panel can compare: how each is read from a run, said in words, and drawn.

Latencies and rates are measured by the trace's clock; sizes and counts are counted. A metric knows
its own samples over time, so that the figure of a comparison draws what its headline says. Knows
nothing about how the runs were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from minserve.request import RequestMetrics
from minserve.trace import RunTrace, StepTrace, TraceSnapshot
from minserve.trace.summary import distribution, inter_token_gaps
from widgets import theme

Better = Literal["higher", "lower"]
Run = RunTrace | TraceSnapshot
Sample = tuple[float, float]
"""(seconds of the run's clock, value)."""
Samples = Callable[[Run], Sequence[Sample]]
Statistic = Literal["p50", "p90", "p99", "mean", "min", "max"]
Style = Literal["dots", "line", "total", "finish"]
"""How samples are drawn. dots: one mark each, and the value as a level line. line: a state that
lasts to the next sample, and the value as a level line. total: a running total, whose end is the
value. finish: a share that grows to 1 at the time that is the value."""

FASTER = ("faster", "slower")
_SMALL = 1.095
"""Factors below are said in percent: "3 % faster"."""


@dataclass(frozen=True)
class Metric:
    """One quantity of a run. A chapter may bring its own."""

    name: str
    label: str
    """"longest stall between two tokens": what stands before the value."""
    better: Better
    read: Callable[[Run], float | None]
    """None where the run says nothing about it."""
    show: Callable[[float], str]
    """The value with its unit."""
    counted: bool = False
    """True where the value is a count, equal in every run of the same schedule."""
    words: tuple[str, str] = ("better", "worse")
    """Said behind a factor of the gaining and of the losing side: "7.4x faster", "2x less memory";
    the factor is always above 1."""
    samples: Samples | None = None
    """What the value is made of, over time. Needed of a headline."""
    style: Style = "dots"
    axis: str = ""
    """What one sample is ("wait of one request"); "" for the label."""

    def compare(self, ratio: float) -> str:
        """A ratio, new over old, in words: "7.4x faster"; "the same" for 1."""
        if ratio == 1:
            return "the same"
        word = self.words[0 if (ratio > 1) == (self.better == "higher") else 1]
        factor = max(ratio, 1 / ratio)
        if factor < _SMALL:
            percent = f"{100 * (factor - 1):.1f}".removesuffix(".0")
            return f"{percent} % {word}"
        return f"{theme.format_ratio(factor)} {word}"


def statistic(
    name: str,
    label: str,
    samples: Samples,
    pick: Statistic,
    *,
    better: Better = "lower",
    show: Callable[[float], str] = theme.format_seconds,
    words: tuple[str, str] = FASTER,
    counted: bool = False,
    axis: str = "",
) -> Metric:
    """A metric that is a statistic of its samples, so that what is drawn is what is quoted."""

    def read(trace: Run) -> float | None:
        found = distribution([value for _, value in samples(trace)])
        return None if found is None else float(getattr(found, pick))

    return Metric(name, label, better, read, show, counted, words, samples, "dots", axis)


def of_requests(
    at: Callable[[RequestMetrics], float | None], value: Callable[[RequestMetrics], float | None]
) -> Samples:
    """One sample for each finished request that has both."""

    def samples(run: Run) -> list[Sample]:
        pairs = ((at(one.metrics), value(one.metrics)) for one in run.requests)
        return sorted((when, what) for when, what in pairs if when is not None and what is not None)

    return samples


def of_steps(value: Callable[[StepTrace], float]) -> Samples:
    """One sample for each step, at its end."""
    return lambda run: [(step.end_s, float(value(step))) for step in run.steps]


def running_total(value: Callable[[StepTrace], float]) -> Samples:
    """The sum over all steps so far, at each step's end."""

    def samples(run: Run) -> list[Sample]:
        sums = itertools.accumulate(float(value(step)) for step in run.steps)
        return [(step.end_s, total) for step, total in zip(run.steps, sums, strict=True)]

    return samples


def keeps(run: Run) -> bool:
    """False for a run that was told to keep no keys and values between steps."""
    return bool(run.header.config.get("memory.kv_cache", True))


def allocated_bytes(run: Run, step: StepTrace) -> int:
    """Bytes of the KV cache that requests own during a step; 0 without a cache, whose pages are
    scratch space of one step."""
    return step.kv_bytes_allocated if keeps(run) else 0


def peak_allocated_bytes(run: Run) -> int:
    """The most bytes of the KV cache that requests owned in a step."""
    return run.totals.peak_kv_bytes_allocated if keeps(run) else 0


def gaps(run: Run) -> list[Sample]:
    """The time between two deliveries of tokens to one request, at the later one."""
    return inter_token_gaps(run.steps)


_WINDOWS, _STEPS_PER_WINDOW = 30, 4


def _token_rate(run: Run) -> list[Sample]:
    """Output tokens/s in windows of at least four steps: samples at their beginnings."""
    steps = run.steps
    if not steps:
        return []
    start, end = steps[0].start_s, steps[-1].end_s
    usual = sorted(step.duration_s for step in steps)[len(steps) // 2]
    width = max((end - start) / _WINDOWS, _STEPS_PER_WINDOW * usual) or 1.0
    count = max(1, int((end - start) / width))
    tokens = [0] * count
    for step in steps:
        tokens[min(int((step.end_s - start) / width), count - 1)] += step.num_sampled_tokens
    # What is left of the run belongs to the last window.
    spans = [width] * (count - 1) + [end - start - (count - 1) * width]
    return [
        (start + n * width, number / span if span > 0 else 0.0)
        for n, (number, span) in enumerate(zip(tokens, spans, strict=True))
    ]


def _mean_token_rate(run: Run) -> float | None:
    totals = run.totals
    return totals.sampled_tokens / totals.duration_s if totals.duration_s > 0 else None


def _share_of_output(run: Run) -> list[Sample]:
    total = run.totals.sampled_tokens
    if not total:
        return []
    return [(at, tokens / total) for at, tokens in running_total(_sampled)(run)]


def _sampled(step: StepTrace) -> float:
    return step.num_sampled_tokens


_ttft = of_requests(lambda m: m.first_token_s, lambda m: m.ttft_s)
_tpot = of_requests(lambda m: m.finished_s, lambda m: m.tpot_s)
_e2e = of_requests(lambda m: m.finished_s, lambda m: m.e2e_s)


def in_time(limit_s: float) -> Metric:
    """Requests whose first token came within `limit_s` of their arrival: goodput under a limit on
    the time to first token (DistServe, arXiv 2401.09670), as a count."""

    def samples(run: Run) -> list[Sample]:
        good = [at for at, took in _ttft(run) if took <= limit_s]
        return [(at, float(number)) for number, at in enumerate(good, 1)]

    return Metric(
        "in_time", f"answers that began within {theme.format_seconds(limit_s)}", "higher",
        lambda run: float(len(samples(run))),
        lambda value: theme.format_count(round(value), "answer"),
        words=("more answers in time", "fewer answers in time"), samples=samples, style="total",
    )  # fmt: skip


def _known() -> Iterator[Metric]:
    yield Metric(
        "output_tokens_per_s", "output tokens per second", "higher",
        _mean_token_rate, theme.format_rate,
        words=FASTER, samples=_token_rate, style="line",
    )  # fmt: skip
    yield Metric(
        "duration_s", "time for the whole workload", "lower",
        lambda trace: trace.totals.duration_s or None, theme.format_seconds,
        words=FASTER, samples=_share_of_output, style="finish", axis="output tokens delivered",
    )  # fmt: skip
    latencies: tuple[tuple[str, str, Samples, Statistic, str], ...] = (
        ("ttft_p50_s", "time to first token (TTFT), median", _ttft, "p50", "TTFT of one request"),
        ("ttft_p99_s", "time to first token (TTFT), p99", _ttft, "p99", "TTFT of one request"),
        ("tpot_p50_s", "time per output token (TPOT), median", _tpot, "p50", "TPOT of one request"),
        ("tpot_p99_s", "time per output token (TPOT), p99", _tpot, "p99", "TPOT of one request"),
        ("e2e_mean_s", "end-to-end latency, mean", _e2e, "mean", "latency of one request"),
        ("e2e_max_s", "end-to-end latency, longest", _e2e, "max", "latency of one request"),
        ("e2e_p50_s", "end-to-end latency, median", _e2e, "p50", "latency of one request"),
        ("e2e_p99_s", "end-to-end latency, p99", _e2e, "p99", "latency of one request"),
        # Between deliveries to one request: the stalls a reader of the text would see.
        ("itl_p99_s", "time between tokens (ITL), p99", gaps, "p99", "time between two tokens"),
        ("itl_max_s", "longest stall between two tokens", gaps, "max", "time between two tokens"),
    )
    for name, label, samples, pick, axis in latencies:
        # A stall is no speed: it is shorter or longer.
        words = ("shorter", "longer") if samples is gaps else FASTER
        yield statistic(name, label, samples, pick, words=words, axis=axis)
    memory = ("less memory", "more memory")
    yield Metric(
        "peak_kv_bytes", "KV memory allocated, peak", "lower",
        lambda trace: float(peak_allocated_bytes(trace)), theme.format_bytes, counted=True,
        words=memory, style="line",
        samples=lambda run: [(s.end_s, float(allocated_bytes(run, s))) for s in run.steps],
    )  # fmt: skip
    yield Metric(
        "peak_kv_bytes_used", "KV memory filled with tokens, peak", "lower",
        lambda trace: float(trace.totals.peak_kv_bytes_used), theme.format_bytes,
        counted=True, words=memory, samples=of_steps(lambda s: s.kv_bytes_used), style="line",
    )  # fmt: skip
    yield Metric(
        "peak_waiting", "requests that wait, at most", "lower",
        lambda trace: float(trace.totals.peak_waiting),
        lambda value: theme.format_count(round(value), "request"), counted=True,
        words=("shorter queue", "longer queue"), samples=of_steps(lambda s: s.num_waiting),
        style="line",
    )  # fmt: skip
    yield Metric(
        "steps", "engine steps", "lower", lambda trace: float(trace.totals.steps),
        lambda value: theme.format_count(round(value), "step"), counted=True,
        words=("fewer steps", "more steps"), samples=running_total(lambda s: 1), style="total",
    )  # fmt: skip
    yield Metric(
        "flops", "arithmetic", "lower", lambda trace: float(trace.totals.flops),
        theme.format_flops, counted=True, words=("less arithmetic", "more arithmetic"),
        samples=running_total(lambda s: s.work.flops), style="total",
    )  # fmt: skip
    yield Metric(
        "bytes", "memory traffic", "lower", lambda trace: float(trace.totals.bytes),
        theme.format_bytes, counted=True, words=("fewer bytes moved", "more bytes moved"),
        samples=running_total(lambda s: s.work.bytes), style="total",
    )  # fmt: skip


METRICS: dict[str, Metric] = {metric.name: metric for metric in _known()}
"""By name. `itl_*` need `trace.per_request`, which panels switch on by themselves."""


def find_metric(metric: str | Metric) -> Metric:
    """A metric by name, or the one given. Raises ValueError for an unknown name."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; known: {', '.join(METRICS)}")
    return METRICS[metric]
