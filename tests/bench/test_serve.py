"""`minserve bench serve`: the fields of vLLM's result files, here and on a modelled GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minserve.__main__ import main

SAMPLES = Path(__file__).parent / "samples"
LATENCIES = ("ttft", "tpot", "itl", "e2el")
VLLM_FIELDS = {
    "date", "backend", "model_id", "num_prompts", "request_rate", "burstiness", "duration",
    "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
    "request_goodput", "output_throughput", "total_token_throughput",
    *(f"{part}_{what}_ms" for part in ("mean", "median", "std", "p99") for what in LATENCIES),
}  # fmt: skip


def serve(tmp_path, *arguments):
    out = tmp_path / "result.json"
    assert main(["bench", "serve", "--json", str(out), "--no-progress", *arguments]) == 0
    return json.loads(out.read_text())


MODELLED = ("--modelled", "H100 SXM", "--shape", "llama-3.1-8b", "--num-prompts", "60")


def test_modelled_traffic_is_served_without_weights_and_reports_what_vllm_does(tmp_path, capsys):
    result = serve(
        tmp_path, *MODELLED, "--request-rate", "20", "--goodput", "ttft:500", "tpot:1000"
    )
    assert result.keys() >= VLLM_FIELDS
    assert result["completed"] == 60 and result["failed"] == 0
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["device_modelled"] == "H100 SXM"
    assert result["steps_per_host_second"] > 0 < result["request_tokens_per_host_second"]
    assert "(modelled)" in capsys.readouterr().err
    again = serve(tmp_path, *MODELLED, "--request-rate", "20")
    assert again["duration"] == result["duration"]


@pytest.mark.parametrize("prefixes", ["shared", "few-shot", "multi-turn", "agent-tree"])
def test_every_shape_of_prompts_is_served(tmp_path, prefixes):
    result = serve(tmp_path, *MODELLED, "--prefixes", prefixes, "--on-off", "5", "20")
    assert result["completed"] == 60


def test_bursts_wait_longer_than_a_steady_stream_at_the_same_rate(tmp_path):
    rate = ("--request-rate", "15", "--input-len", "1000", "--lengths", "fixed")
    steady = serve(tmp_path, *MODELLED, *rate, "--burstiness", "50")
    bursty = serve(tmp_path, *MODELLED, *rate, "--burstiness", "0.05")
    assert bursty["p99_ttft_ms"] > 1.3 * steady["p99_ttft_ms"]


@pytest.mark.parametrize("name", ["mooncake.jsonl", "azure.csv", "burstgpt.csv", "sharegpt.json"])
def test_a_recorded_trace_is_played(tmp_path, name):
    result = serve(tmp_path, *MODELLED, "--trace", str(SAMPLES / name))
    assert result["completed"] == result["num_prompts"] > 0
    assert str(tmp_path.parent) not in result["workload"]


def test_a_recorded_trace_is_played_at_another_rate(tmp_path):
    trace = ("--trace", str(SAMPLES / "azure.csv"))
    own = serve(tmp_path, *MODELLED, *trace)
    fast = serve(tmp_path, *MODELLED, *trace, "--request-rate", "1000")
    assert fast["request_rate"] == 1000 > own["request_rate"]
    assert fast["duration"] < own["duration"]


def test_the_real_engine_is_served_too(tmp_path):
    result = serve(
        tmp_path, "--model", "zoo/base", "--num-prompts", "6", "--request-rate", "50",
        "--input-len", "12", "--output-len", "6", "--set", "scheduling.order=mlfq",
    )  # fmt: skip
    assert result["completed"] == 6 and result["device_modelled"] is None
    assert result["median_itl_ms"] > 0 and result["config"]["scheduling.order"] == "mlfq"
