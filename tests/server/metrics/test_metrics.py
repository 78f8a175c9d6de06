"""`/metrics`: its totals are those of the requests' own outputs, however often it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from made_traces import make_step, make_trace
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from minserve import LLM, AsyncLLM, EngineConfig, QueueFullError, SamplingParams
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic, fixed_length, poisson
from minserve.build import build_virtual_engine
from minserve.clock import VirtualClock
from minserve.hardware import DEVICES
from minserve.loading import find_model
from minserve.models import load_spec
from minserve.request import RequestMetrics
from minserve.server.metrics import EngineMetrics
from minserve.server.metrics.names import METRICS, OBSERVED, all_series
from minserve.trace import RunTrace, Speculation, StepTrace
from minserve.virtual import CostModel

CONFIG = EngineConfig(dtype="float32", device="cpu")
TINY_RING = {"trace.max_steps": 2, "scheduling.max_num_seqs": 3}
PROMPTS = ("def f():", "import re", "x = [", "class A:", "for i in")


def scrape(metrics: EngineMetrics) -> dict[str, float]:
    """Series -> value, without the labels that all have."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            found[sample.name + (json.dumps(labels) if labels else "")] = sample.value
    return found


def histograms(found: dict[str, float]) -> dict[str, float]:
    """What histograms say: counts by bucket and sums."""
    return {k: v for k, v in found.items() if "_bucket" in k or k.endswith(("_sum", "_count"))}


@pytest.fixture
def llm() -> Iterator[AsyncLLM]:
    with AsyncLLM("zoo/base", CONFIG.with_values(TINY_RING)) as model:
        yield model


def test_totals_are_those_of_the_outputs_with_a_ring_of_two_steps(llm: AsyncLLM) -> None:
    metrics = EngineMetrics(llm)
    params = [SamplingParams(max_tokens=3 + n, ignore_eos=True, temperature=0) for n in range(5)]
    streams = [llm.add(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    chunks = [list(stream) for stream in streams]
    outputs = [next(c for c in each if c.finish_reason is not None) for each in chunks]
    assert [c.finish_reason for c in outputs] == ["length"] * 5
    assert len(llm.trace.steps) == 2 < llm.trace.totals.steps
    found = scrape(metrics)
    tokens = sum(len(c.token_ids) for each in chunks for c in each)
    assert found["vllm:generation_tokens_total"] == tokens == sum(3 + n for n in range(5))
    assert found["vllm:request_generation_tokens_sum"] == tokens
    prompts = sum(request.metrics.num_prompt_tokens for request in llm.trace.requests)
    assert found["vllm:prompt_tokens_total"] == found["vllm:request_prompt_tokens_sum"] == prompts
    assert found['vllm:request_success_total{"finished_reason": "length"}'] == 5
    assert found["minserve:request_arrivals_total"] == 5
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert found[f"vllm:{name}_seconds_count"] == 5
    # A delivery for each token but the first.
    assert found["vllm:inter_token_latency_seconds_count"] == tokens - 5
    assert found["vllm:iteration_tokens_total_count"] == found["minserve:engine_steps_total"]
    totals = llm.trace.totals
    assert found["vllm:iteration_tokens_total_sum"] == totals.prefill_tokens + totals.decode_tokens
    assert found["vllm:num_requests_running"] == found["vllm:kv_cache_usage_perc"] == 0


def test_times_are_those_of_the_requests(llm: AsyncLLM) -> None:
    metrics = EngineMetrics(llm)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    for stream in [llm.add(prompt, params) for prompt in PROMPTS]:
        list(stream)
    found = scrape(metrics)
    of: list[RequestMetrics] = [request.metrics for request in llm.trace.requests]
    assert found["vllm:time_to_first_token_seconds_sum"] == pytest.approx(
        sum(m.ttft_s or math.nan for m in of)
    )
    assert found["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(
        sum(m.e2e_s or math.nan for m in of)
    )
    gaps = sum((m.finished_s or math.nan) - (m.first_token_s or math.nan) for m in of)
    assert found["vllm:inter_token_latency_seconds_sum"] == pytest.approx(gaps)
    assert found["vllm:request_decode_time_seconds_sum"] == pytest.approx(gaps)
    assert found["vllm:request_time_per_output_token_seconds_sum"] == pytest.approx(gaps / 5)


def arrivals(count: int = 30) -> Traffic:
    return poisson(
        [tuple(range(2, 12 + n)) for n in range(count)],
        [fixed_length(15 + n % 7) for n in range(count)],
        rate_per_s=1e5,
    )


def virtual_run(max_steps: int, scrapes: bool) -> tuple[dict[str, float], RunTrace]:
    spec = load_spec(find_model("zoo/base"))
    config = CONFIG.with_values(
        {
            "trace.max_steps": max_steps,
            "scheduling.max_num_seqs": 6,
            "scheduling.max_model_len": 100,
            "memory.block_size": 8,
            "memory.watermark": 0.0,
            "memory.kv_bytes": 8 * 15 * spec.kv_bytes_per_token(4),
        }
    )
    engine = build_virtual_engine(spec, config, CostModel(DEVICES["H100 SXM"]), "base")
    metrics = EngineMetrics(engine, with_process=False)

    def watch(step: StepTrace) -> None:
        if scrapes and step.index % 3 == 0:
            metrics.render()

    drive(engine, arrivals(), on_step=watch)
    return scrape(metrics), engine.trace


def test_gaps_between_arrivals_are_those_of_the_traffic() -> None:
    found, _ = virtual_run(5, scrapes=True)
    gaps = [request.gap / 1e5 for request in arrivals().requests[1:]]
    assert found["minserve:request_arrivals_total"] == 30
    assert found["minserve:request_interarrival_seconds_count"] == 29
    assert found["minserve:request_interarrival_seconds_sum"] == pytest.approx(sum(gaps))


def test_scrapes_in_between_and_small_rings_change_no_total() -> None:
    once, trace = virtual_run(10_000, scrapes=False)
    assert trace.totals.preemptions and len(trace.steps) > 40
    for max_steps, scrapes in ((10_000, True), (5, False), (5, True), (1, True)):
        assert virtual_run(max_steps, scrapes)[0] == once


def test_waits_are_the_same_with_and_without_detail_in_the_trace() -> None:
    with LLM("zoo/base", CONFIG.with_values({"trace.per_request": True})) as llm:
        llm.generate(list(PROMPTS), SamplingParams(max_tokens=9, ignore_eos=True))
        trace = llm.trace
    found = scrape(EngineMetrics(trace, with_process=False))
    deliveries = sum(bool(part.new_token_ids) for step in trace.steps for part in step.requests)
    counted = sum(sum(step.itl_counts) + len(step.ttft_s) for step in trace.steps)
    assert deliveries == counted == found["vllm:generation_tokens_total"] == 9 * len(PROMPTS)


def test_an_aborted_request_counts_as_such_and_leaves_an_idle_engine(llm: AsyncLLM) -> None:
    metrics = EngineMetrics(llm)
    stream = llm.add("def endless():", SamplingParams(max_tokens=1500, ignore_eos=True))
    chunks = iter(stream)
    next(chunks)
    assert scrape(metrics)["vllm:num_requests_running"] == 1
    stream.abort()
    list(chunks)
    found = scrape(metrics)
    assert found['vllm:request_success_total{"finished_reason": "abort"}'] == 1
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:e2e_request_latency_seconds_count"] == 0
    assert found["vllm:request_generation_tokens_count"] == 1
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["minserve:request_arrivals_total"] == 1


def test_refused_requests_are_counted() -> None:
    limits = {"scheduling.max_num_seqs": 1, "scheduling.max_queued_requests": 1}
    with AsyncLLM("zoo/base", CONFIG.with_values(limits)) as llm:
        metrics = EngineMetrics(llm)
        first = llm.add("a", SamplingParams(max_tokens=60, ignore_eos=True))
        chunks = iter(first)
        next(chunks)
        refused = 0
        streams = [llm.add("b", SamplingParams(max_tokens=2, ignore_eos=True)) for _ in range(4)]
        for stream in streams:
            try:
                list(stream)
            except QueueFullError:
                refused += 1
        list(chunks)
        found = scrape(metrics)
    assert refused == 3 == found["minserve:request_refused_total"]
    assert found["minserve:request_interarrival_seconds_count"] == 4
    assert found["minserve:request_arrivals_total"] == 5


def test_prefix_hits_and_queries_add_up_to_the_prompts() -> None:
    config = CONFIG.with_values({"memory.prefix_cache": "radix"})
    with LLM("zoo/base", config) as llm:
        shared = list(range(100, 150))
        params = SamplingParams(max_tokens=1)
        llm.generate([shared], params)
        metrics = EngineMetrics(llm.trace, with_process=False)
        before = scrape(metrics)
        llm.generate([[*shared, 7, 8]], params)
        found = scrape(EngineMetrics(llm.trace, with_process=False))
    assert before["vllm:prefix_cache_queries_total"] == 50
    assert before["vllm:prefix_cache_hits_total"] == 0
    assert found["vllm:prefix_cache_queries_total"] == 52
    assert found["vllm:prefix_cache_hits_total"] >= 48


def test_what_is_told_is_what_is_listed_and_nothing_is_global() -> None:
    before = list(REGISTRY.collect())
    trace = make_trace()
    spec = Speculation(2, (2, 2), (2, 1))
    trace.append(replace(make_step(6), speculation=spec))
    metrics = EngineMetrics(trace, price_per_hour=2.0, with_process=False)
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert families.keys() == METRICS.keys()
    told = {sample.name for family in families.values() for sample in family.samples}
    assert told == set(all_series())
    for name, metric in METRICS.items():
        assert families[name].type == metric.kind and families[name].documentation == metric.text
        for sample in families[name].samples:
            assert sample.labels["model_name"] == "zoo/base" and sample.labels["engine"] == "0"
    found = scrape(metrics)
    assert found['vllm:spec_decode_num_accepted_tokens_per_pos_total{"position": "1"}'] == 1
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == 3
    assert [f.name for f in REGISTRY.collect()] == [f.name for f in before]


def test_two_engines_keep_their_own_counts() -> None:
    one, two = make_trace(), make_trace(steps=2, requests=1)
    first, second = (EngineMetrics(each, with_process=False) for each in (one, two))
    assert scrape(first)["minserve:engine_steps_total"] == 6
    assert scrape(second)["minserve:engine_steps_total"] == 2
    assert scrape(first)["vllm:e2e_request_latency_seconds_count"] == 3


def test_the_process_is_told_beside_the_engine() -> None:
    found = scrape(EngineMetrics(make_trace()))
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_cpu_seconds_total"] > 0


def test_cost_is_price_times_time_per_million_tokens() -> None:
    clock = VirtualClock()
    trace = make_trace()
    metrics = EngineMetrics(trace, price_per_hour=3.6, clock=clock, with_process=False)
    clock.advance(1000.0)
    found = scrape(metrics)
    assert found["minserve:cost_total"] == pytest.approx(1.0)
    tokens = trace.totals.sampled_tokens
    price = found['minserve:cost_per_million_tokens{"tokens": "generated"}']
    assert price == pytest.approx(1e6 / tokens)
    assert not any("cost" in name for name in scrape(EngineMetrics(trace)))


def test_no_token_has_no_price() -> None:
    found = scrape(EngineMetrics(RunTrace(), price_per_hour=1.0, with_process=False))
    assert not any("per_million" in name for name in found)
    assert found["vllm:generation_tokens_total"] == 0


@pytest.mark.parametrize("price", [0.0, -1.0, math.inf, math.nan])
def test_a_price_is_a_positive_number(price: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        EngineMetrics(RunTrace(), price_per_hour=price)


def test_a_value_falls_into_the_first_bucket_that_holds_it() -> None:
    for metric in OBSERVED:
        assert list(metric.buckets) == sorted(set(metric.buckets))
    found = scrape(EngineMetrics(make_trace(steps=0, requests=1), with_process=False))
    buckets = {
        json.loads(k.partition("_bucket")[2])["le"]: v
        for k, v in found.items()
        if k.startswith("vllm:request_prompt_tokens_bucket")
    }
    assert buckets["5.0"] == 0 and buckets["10.0"] == buckets["+Inf"] == 1
