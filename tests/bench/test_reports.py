"""Result fields, spreads, interleaving, token checks and the floor."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from minserve.bench.common import add_common_arguments, config_from
from minserve.bench.counts.floor import floor_of
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.metrics import Run, latency_result, serve_result, throughput_result
from minserve.bench.peers.equal import compare_tokens
from minserve.bench.workloads.workload import WorkItem, Workload
from minserve.config import ConfigError
from minserve.hardware import Ceilings, Rate
from minserve.hardware.ceilings import BandwidthPoint, ProductPoint
from minserve.request import RequestMetrics
from minserve.trace import RunTrace, StageTimes, StepTrace, StepWork


def make_run() -> Run:
    metrics = tuple(
        RequestMetrics(0.0, 0.1, 0.2 + 0.1 * number, 1.2 + 0.3 * number, 10, 11, 0)
        for number in range(5)
    )
    return Run(2.0, ((1,) * 11,) * 5, 50, metrics, itl_s=(0.1, 0.2, 0.4))


def test_serve_result_has_vllms_field_names_and_numpys_percentiles() -> None:
    result = serve_result(make_run())
    assert result["completed"] == 5
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (50, 55)
    assert result["request_throughput"] == 2.5
    assert result["output_throughput"] == 27.5
    assert result["total_token_throughput"] == 52.5
    values = {
        "ttft": np.array([0.2, 0.3, 0.4, 0.5, 0.6]),
        "tpot": np.array([0.1, 0.12, 0.14, 0.16, 0.18]),
        "itl": np.array([0.1, 0.2, 0.4]),
        "e2el": np.array([1.2, 1.5, 1.8, 2.1, 2.4]),
    }
    for name, seconds in values.items():
        assert result[f"mean_{name}_ms"] == pytest.approx(seconds.mean() * 1e3)
        assert result[f"median_{name}_ms"] == pytest.approx(np.median(seconds) * 1e3)
        assert result[f"std_{name}_ms"] == pytest.approx(seconds.std() * 1e3)
        assert result[f"p99_{name}_ms"] == pytest.approx(np.percentile(seconds, 99) * 1e3)


def test_a_side_that_cannot_tell_latencies_reports_none() -> None:
    result = serve_result(Run(2.0, ((1, 2),), 5))
    assert result["mean_ttft_ms"] is None
    assert result["p99_itl_ms"] is None
    assert throughput_result(Run(2.0, ((1, 2),), 5))["tokens_per_second"] == 3.5


def test_latency_result_has_vllms_percentiles() -> None:
    result = latency_result([3.0, 1.0, 2.0])
    assert result["avg_latency"] == 2.0
    assert result["latencies"] == [3.0, 1.0, 2.0]
    assert result["percentiles"]["75"] == 2.5
    with pytest.raises(ValueError, match="at least one run"):
        latency_result([])


def test_rounds_run_every_side_once_and_turn_the_order_round() -> None:
    calls: list[str] = []
    results = interleave(
        {"a": lambda: calls.append("a") or 1, "b": lambda: calls.append("b") or 2},
        3,
        warmup={"a": lambda: calls.append("warm a")},
        progress=False,
    )
    assert calls == ["warm a", "a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1, 1, 1], "b": [2, 2, 2]}
    with pytest.raises(ValueError, match="at least 1 round"):
        interleave({}, 0)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine halved its speed in the second round; the ratio does not care.
    ratio = pairwise_ratio([20.0, 10.0, 22.0], [10.0, 5.0, 10.0])
    assert (ratio.min, ratio.median, ratio.max) == (2.0, 2.0, 2.2)
    assert str(Spread.of([1.0, 2.0, 4.0])) == "2 (1 to 4)"
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_first_differences_are_ties_only_where_the_oracle_says_so() -> None:
    items = tuple(WorkItem((7, 8), 3) for _ in range(4))
    asked: list[list[int]] = []

    def gap(token_ids: list[int]) -> float:
        asked.append(token_ids)
        return 1e-6 if token_ids[-1] == 5 else 0.5

    check = compare_tokens(
        Workload("w", items, 0),
        [(1, 2, 3), (5, 2, 3), (1, 9, 3), (1, 2)],
        [(1, 2, 3), (5, 4, 4), (1, 2, 3), (1, 2, 3)],
        against="oracle",
        dtype="float32",
        gap=gap,
    )
    assert check.identical == 1
    assert [(tie.request, tie.position) for tie in check.ties] == [(1, 1)]
    assert [(each.request, each.position) for each in check.differences] == [(2, 1), (3, 2)]
    assert asked == [[7, 8, 5], [7, 8, 1]]
    assert not check.equal
    assert "2 DIFFERENT" in str(check)
    with pytest.raises(ValueError, match="4 requests"):
        compare_tokens(Workload("w", items, 0), [], [], against="o", dtype="float32")


def made_up(per_s: float) -> Rate:
    return Rate(per_s, per_s, per_s, "made up", 3)


def test_floor_sums_every_steps_bound() -> None:
    limits = Ceilings(
        "a CPU", "cpu", 2, "2", "2026-11-21", True, None,
        (BandwidthPoint(1 << 20, made_up(1e9), made_up(1e9)),),
        (ProductPoint("float32", 256, 256, made_up(1e9)),), (),
    )  # fmt: skip
    trace = RunTrace()
    works = [StepWork(linear_flops=2 * 10**9), StepWork(weight_bytes=3 * 10**9)]
    for index, work in enumerate(works):
        trace.append(
            StepTrace(index, 10.0 * index, 10.0 * index + 10, StageTimes(), work, *[0] * 16)
        )
    floor = floor_of(trace, limits, "float32")
    assert floor.floor_s == pytest.approx(5.0)
    assert floor.memory_bound_steps == 1
    assert floor.measured_s == 20.0
    assert floor.times_floor == pytest.approx(4.0)
    assert "4.00 times the floor" in str(floor)
    short = RunTrace(max_steps=1)
    for step in trace.steps:
        short.append(step)
    with pytest.raises(ValueError, match="kept 1 of 2"):
        floor_of(short, limits, "float32")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_args(words)


def test_set_changes_fields_of_the_engines_configuration() -> None:
    args = arguments("--set", "memory.block_size=32", "--set", "memory.kv_cache=false")
    config = config_from(args, scheduling__max_num_seqs=3)
    assert config.memory.block_size == 32
    assert not config.memory.kv_cache
    assert config.scheduling.max_num_seqs == 3
    assert config.dtype == "float32"
    assert config_from(arguments("--set", "memory.kv_bytes=none")).memory.kv_bytes is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("memory.block_sise=32", "did you mean 'memory.block_size'"),
        ("memory.block_size", "expected FIELD=VALUE"),
        ("memory.block_size=big", "block_size=big: expected an integer"),
        ("memory.watermark=big", "watermark=big: expected a number"),
        ("memory.kv_cache=maybe", "expected true or false"),
    ],
)
def test_a_wrong_field_or_value_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config_from(arguments("--set", text))
