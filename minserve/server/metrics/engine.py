"""`EngineMetrics`: one engine's metrics in Prometheus's text format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from minserve.clock import Clock, WallClock
from minserve.request import FinishReason
from minserve.server.metrics.names import COMMON_LABELS, METRICS, OBSERVED
from minserve.server.metrics.observed import Histogram, Observed
from minserve.trace import RunTotals, RunTrace, StageTimes

Values = Mapping[tuple[str, ...], float]
"""Label values beside the common ones -> the metric's value; () where there are no such labels."""
STAGES = tuple(StageTimes.__dataclass_fields__)


class Traced(Protocol):
    """Something with a trace: an `AsyncLLM`."""

    @property
    def trace(self) -> RunTrace:
        """The trace of its engine."""
        ...


class EngineMetrics(Collector):
    """The metrics of one engine since its trace began, and of its process.

    `source` is an `AsyncLLM` or a `RunTrace`; the trace that it has now is followed for good.
    `price_per_hour` is what the machine costs, in any currency: with it, cost metrics are told.
    `engine` is the number of the replica. Other metrics may join `registry`, which no two engines
    share. Raises ValueError for a price that is not a positive number.
    """

    def __init__(
        self,
        source: RunTrace | Traced,
        *,
        price_per_hour: float | None = None,
        engine: str = "0",
        clock: Clock | None = None,
        with_process: bool = True,
    ) -> None:
        if price_per_hour is not None and not 0 < price_per_hour < math.inf:
            raise ValueError(
                f"EngineMetrics(price_per_hour={price_per_hour}): expected a positive number, or "
                "None for no cost metrics"
            )
        self.trace = source if isinstance(source, RunTrace) else source.trace
        self.registry = CollectorRegistry()
        self._price_per_hour = price_per_hour
        self._clock = clock or WallClock()
        self._start_s = self._clock.now()
        self._common = (self.trace.header.model, engine)
        self._observed = Observed()
        self._tail = self.trace.follow(self._observed.read_step, self._observed.read_request)
        self.registry.register(self)
        if with_process:
            ProcessCollector(registry=self.registry)

    @property
    def content_type(self) -> str:
        """The HTTP content type of `render`."""
        return CONTENT_TYPE_LATEST

    def render(self) -> bytes:
        """The answer to `GET /metrics`. From any thread; the engine does not wait for it."""
        return generate_latest(self.registry)

    def describe(self) -> Iterator[Family]:
        """Nothing: the registry needs no names before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """Every metric as it is now; called by the registry."""
        self._tail.catch_up()
        totals = self.trace.totals
        values = {**self._gauges(), **_counters(totals), **self._speculation(totals)}
        values |= self._requests(totals) | self._costs(totals)
        families: list[Family] = [self._family(name, found) for name, found in values.items()]
        with self._observed.lock:
            for metric in OBSERVED:
                families.append(self._histogram(metric.name))
        yield from families

    # -- values by name ----------------------------------------------------------------------------

    def _gauges(self) -> dict[str, Values]:
        """The state at the end of the newest step, or of an engine without requests."""
        running, waiting = self.trace.load()
        step, config = self.trace.newest, self.trace.header.config
        owned = step.blocks.owned_bytes if step is not None and running + waiting else 0
        used = step.kv_bytes_used if step is not None and running + waiting else 0
        reserved = step.kv_bytes_reserved if step is not None else 0
        block_size = str(config.get("memory.block_size"))
        blocks = str(step.blocks_total if step is not None else 0)
        caches = str(config.get("memory.prefix_cache") not in ("off", None))
        info: Values = {(block_size, blocks, caches): 1}
        held: Values = {("reserved",): reserved, ("owned",): owned, ("used",): used}
        return {
            "vllm:num_requests_running": {(): running},
            "vllm:num_requests_waiting": {(): waiting},
            "vllm:kv_cache_usage_perc": {(): owned / reserved if reserved else 0.0},
            "vllm:cache_config_info": info,
            "minserve:kv_cache_bytes": held,
        }

    def _requests(self, totals: RunTotals) -> dict[str, Values]:
        """Requests that came, and how they ended."""
        with self._observed.lock:
            ended = dict(self._observed.ended)
        reasons: tuple[FinishReason, ...] = get_args(FinishReason)
        by_reason: Values = {(reason,): ended.get(reason, 0) for reason in reasons}
        return {
            "vllm:request_success": by_reason,
            "minserve:request_arrivals": {(): totals.arrived},
            "minserve:request_refused": {(): totals.refused},
        }

    def _speculation(self, totals: RunTotals) -> dict[str, Values]:
        spec = totals.speculation
        per_position: Values = {(str(n),): count for n, count in enumerate(spec.accepted_tokens)}
        return {
            "vllm:spec_decode_num_drafts": {(): spec.num_drafts},
            "vllm:spec_decode_num_draft_tokens": {(): sum(spec.proposed_tokens)},
            "vllm:spec_decode_num_accepted_tokens": {(): sum(spec.accepted_tokens)},
            "vllm:spec_decode_num_accepted_tokens_per_pos": per_position,
        }

    def _costs(self, totals: RunTotals) -> dict[str, Values]:
        if self._price_per_hour is None:
            return {}
        cost = self._price_per_hour * (self._clock.now() - self._start_s) / 3600
        generated = totals.sampled_tokens
        tokens = {"generated": generated, "all": generated + totals.prompt_tokens}
        return {
            "minserve:price_per_hour": {(): self._price_per_hour},
            "minserve:cost": {(): cost},
            "minserve:cost_per_million_tokens": {
                (kind,): cost / count * 1e6 for kind, count in tokens.items() if count
            },
        }

    # -- Prometheus's objects ----------------------------------------------------------------------

    def _family(self, name: str, values: Values) -> Family:
        metric = METRICS[name]
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.text, labels=(*COMMON_LABELS, *metric.labels))
        for labels, value in values.items():
            family.add_metric((*self._common, *labels), value)
        return family

    def _histogram(self, name: str) -> Family:
        family = HistogramMetricFamily(name, METRICS[name].text, labels=COMMON_LABELS)
        found: Histogram = self._observed.histograms[name]
        family.add_metric(self._common, found.cumulative(), found.sum)
        return family


def _counters(totals: RunTotals) -> dict[str, Values]:
    """The trace's own totals."""
    found = totals.hit_tokens + totals.loaded_tokens
    plain = {
        # Every prompt token, and every one that is computed again, is looked up when its request
        # is admitted; it is then found or computed.
        "vllm:prefix_cache_queries": totals.prefill_tokens + found,
        "vllm:prefix_cache_hits": found,
        "vllm:num_preemptions": totals.preemptions,
        "vllm:prompt_tokens": totals.prompt_tokens,
        "vllm:generation_tokens": totals.sampled_tokens,
        "minserve:evicted_blocks": totals.evicted_blocks,
        "minserve:recomputed_tokens": totals.recomputed_tokens,
        "minserve:engine_steps": totals.steps,
        "minserve:engine_busy_seconds": totals.busy_s,
        "minserve:flops": totals.flops,
        "minserve:traffic_bytes": totals.bytes,
    }
    values: dict[str, Values] = {name: {(): value} for name, value in plain.items()}
    stages: Values = {(stage.removesuffix("_s"),): getattr(totals, stage) for stage in STAGES}
    return values | {"minserve:stage_seconds": stages}
