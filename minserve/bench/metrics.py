"""Results in the field names of `vllm bench serve`, `throughput` and `latency`.

Tools that read vLLM's result files can read ours: times in milliseconds if the name says so,
seconds otherwise, throughputs per second of the whole benchmark. Percentiles interpolate
linearly, as in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minserve.config import ConfigError
from minserve.request import RequestMetrics
from minserve.trace.summary import distribution, percentile


@dataclass(frozen=True)
class Slo:
    """The limits that a request must meet to count as good (DistServe, Zhong et al.,
    arXiv 2401.09670); None: no limit. The keys of `vllm bench serve --goodput` are
    ttft, tpot and e2el."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    def met_by(self, metrics: RequestMetrics) -> bool:
        """True if a request met the limits. A request with one output token has no TPOT and meets
        any limit on it; a request that ended without a token meets none."""
        if metrics.ttft_s is None or metrics.e2e_s is None:
            return False
        pairs = (
            (metrics.ttft_s, self.ttft_s),
            (metrics.tpot_s or 0.0, self.tpot_s),
            (metrics.e2e_s, self.e2el_s),
        )
        return all(limit is None or value <= limit for value, limit in pairs)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Slo | None:
        """Limits from "ttft:200 tpot:50", in milliseconds, as in vLLM; None if there are no texts.

        Raises ConfigError (a ValueError) for anything else.
        """
        limits: dict[str, float] = {}
        for text in texts:
            name, colon, value = text.partition(":")
            try:
                limit_ms = float(value)
            except ValueError:
                limit_ms = -1.0
            if not colon or name not in ("ttft", "tpot", "e2el") or limit_ms <= 0:
                raise ConfigError(
                    f"goodput {text!r}: expected ttft:MS, tpot:MS or e2el:MS, such as ttft:200"
                )
            limits[f"{name}_s"] = limit_ms / 1e3
        return cls(**limits) if limits else None


@dataclass(frozen=True)
class Run:
    """One side's run over a workload."""

    duration_s: float
    token_ids: tuple[tuple[int, ...], ...]
    """Generated tokens, by request; empty if the side tells only how many there were."""
    num_input_tokens: int
    metrics: tuple[RequestMetrics, ...] = ()
    """By request; empty if the side does not measure them, as with a static batch."""
    itl_s: tuple[float, ...] = field(default=(), repr=False)
    """Times between deliveries, if they were recorded."""
    num_failed: int = 0
    """Requests that were refused, aborted or ended with an error; they are not in the fields
    above."""
    num_refused: int = 0
    """Of these, requests that came when the queue was full."""
    output_lens: tuple[int, ...] = ()
    """How many tokens each request generated, where `token_ids` is empty."""

    @property
    def num_requests(self) -> int:
        """Requests that were completed."""
        return len(self.token_ids or self.output_lens)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated."""
        return sum(map(len, self.token_ids)) + sum(self.output_lens)

    @property
    def output_throughput(self) -> float:
        """Output tokens per second."""
        return self.num_output_tokens / self.duration_s


def pooled(runs: Sequence[Run]) -> Run:
    """Several runs joined into one long run."""
    return Run(
        duration_s=sum(run.duration_s for run in runs),
        token_ids=tuple(tokens for run in runs for tokens in run.token_ids),
        num_input_tokens=sum(run.num_input_tokens for run in runs),
        metrics=tuple(metrics for run in runs for metrics in run.metrics),
        itl_s=tuple(seconds for run in runs for seconds in run.itl_s),
        num_failed=sum(run.num_failed for run in runs),
        num_refused=sum(run.num_refused for run in runs),
        output_lens=tuple(length for run in runs for length in run.output_lens),
    )


def serve_result(
    run: Run, slo: Slo | None = None, percentiles: Sequence[float] = (99,)
) -> dict[str, Any]:
    """One run as `vllm bench serve` reports it; latencies are None if nothing was measured.

    `percentiles` are those told beside the median, such as 99 or 99.9. `request_goodput` is the
    requests per second that met the whole `slo`; None without one.
    """
    requests, seconds = run.num_requests, run.duration_s
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": requests,
        "failed": run.num_failed,
        "refused": run.num_refused,
        "total_input_tokens": run.num_input_tokens,
        "total_output_tokens": run.num_output_tokens,
        "request_throughput": requests / seconds,
        "request_goodput": slo and sum(map(slo.met_by, run.metrics)) / seconds,
        "output_throughput": run.output_throughput,
        "total_token_throughput": (run.num_input_tokens + run.num_output_tokens) / seconds,
    }
    latencies = {
        "ttft": [m.ttft_s for m in run.metrics if m.ttft_s is not None],
        "tpot": [m.tpot_s for m in run.metrics if m.tpot_s is not None],
        "itl": list(run.itl_s),
        "e2el": [m.e2e_s for m in run.metrics if m.e2e_s is not None],
    }
    for name, values in latencies.items():
        spread, ordered = distribution(values), sorted(values)
        result |= {
            f"mean_{name}_ms": spread and spread.mean * 1e3,
            f"median_{name}_ms": spread and spread.p50 * 1e3,
            f"std_{name}_ms": spread and spread.std * 1e3,
        }
        for percent in percentiles:
            value = percentile(ordered, percent) * 1e3 if ordered else None
            result[f"p{percent:g}_{name}_ms"] = value
    return result


def throughput_result(run: Run) -> dict[str, Any]:
    """One run as `vllm bench throughput` reports it."""
    tokens = run.num_input_tokens + run.num_output_tokens
    return {
        "elapsed_time": run.duration_s,
        "num_requests": run.num_requests,
        "total_num_tokens": tokens,
        "requests_per_second": run.num_requests / run.duration_s,
        "tokens_per_second": tokens / run.duration_s,
    }


def latency_result(seconds: Sequence[float]) -> dict[str, Any]:
    """End-to-end latencies as `vllm bench latency` reports them. Raises ValueError if there are
    none."""
    spread = distribution(seconds)
    if spread is None:
        raise ValueError("a latency result needs at least one run")
    ordered = sorted(seconds)
    return {
        "avg_latency": spread.mean,
        "std_latency": spread.std,
        "latencies": list(seconds),
        "percentiles": {
            str(percent): percentile(ordered, percent) for percent in (10, 25, 50, 75, 90, 99)
        },
    }
