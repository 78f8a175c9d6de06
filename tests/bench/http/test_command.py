"""`minserve bench serve --url`: options, the result's fields, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from bench.http.fake_server import Answer, Asked, FakeServer, as_asked, serving

from minserve.__main__ import main

FEW = ("--num-prompts", "6", "--request-rate", "500", "--input-len", "4", "--output-len", "3",
       "--lengths", "fixed", "--no-progress")  # fmt: skip
LATENCIES = ("ttft", "tpot", "itl", "e2el")
VLLM_FIELDS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts",
    "request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed",
    "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
    "output_throughput", "total_token_throughput", "max_concurrent_requests",
    *(f"{part}_{what}_ms" for part in ("mean", "median", "std", "p99") for what in LATENCIES),
}  # fmt: skip


def serve(server: FakeServer, tmp_path: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    out = tmp_path / "result.json"
    words = ["bench", "serve", "--url", server.url, "--json", str(out), *FEW, *arguments]
    assert main(words) == code
    return json.loads(out.read_text())


def test_the_result_has_the_fields_of_vllms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        result = serve(
            server, tmp_path, "--goodput", "ttft:60000", "--metric-percentiles", "50,90,99",
            "--save-detailed",
        )  # fmt: skip
    assert result.keys() >= VLLM_FIELDS
    assert result["completed"] == 6 and result["failed"] == 0 and result["complete"]
    assert result["total_output_tokens"] == 18 and result["total_input_tokens"] == 24
    assert result["model_id"] == "fake" and result["p90_ttft_ms"] >= result["p50_ttft_ms"]
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert len(result["ttfts"]) == 6 and result["output_lens"] == [3] * 6
    said = capsys.readouterr().err
    assert "requests completed" in said and "p90 TTFT" in said and "the client's CPU" in said
    assert len(server.asked) == 7, "and one to warm up"


def test_a_closed_loop_needs_only_a_number_of_clients(tmp_path: Path) -> None:
    with serving() as server:
        words = [word for word in FEW if word not in ("--request-rate", "500")]
        out = tmp_path / "result.json"
        assert main(["bench", "serve", "--url", server.url, "--json", str(out), *words,
                     "--max-concurrency", "2"]) == 0  # fmt: skip
    result = json.loads(out.read_text())
    assert result["request_rate"] == "inf" and result["max_concurrency"] == 2
    assert server.most_open <= 2 and result["completed"] == 6


def test_saved_requests_are_the_same_for_another_server(tmp_path: Path) -> None:
    saved = str(tmp_path / "requests.jsonl")
    with serving() as one, serving() as two:
        first = serve(one, tmp_path, "--save-requests", saved, "--num-warmups", "0")
        second = serve(two, tmp_path, "--requests-in", saved, "--num-warmups", "0")
    prompts = [sorted(asked.body["prompt"] for asked in each.asked) for each in (one, two)]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 6
    assert first["workload"] == second["workload"]


def test_a_recorded_trace_is_played(tmp_path: Path) -> None:
    trace = Path(__file__).parents[1] / "samples" / "mooncake.jsonl"
    with serving(models={"data": [{"id": "fake", "max_model_len": 4000}]}) as server:
        result = serve(server, tmp_path, "--trace", str(trace), "--request-rate", "1000")
    assert result["completed"] == result["num_prompts"] > 0


def test_chat_and_extra_fields_and_a_key_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def chat(asked: Asked, answer: Answer) -> None:
        await answer.start()
        await answer.event({"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]})
        await answer.usage(4, 1)
        await answer.end()

    monkeypatch.setenv("SOME_KEY", "secret-key")
    with serving(chat) as server:
        result = serve(
            server, tmp_path, "--endpoint", "chat", "--extra-body", '{"top_k": 3}',
            "--api-key-env", "SOME_KEY", "--standard-fields",
        )  # fmt: skip
    asked = server.asked[-1]
    assert asked.path == "/v1/chat/completions" and asked.body["top_k"] == 3
    assert asked.headers["authorization"] == "Bearer secret-key"
    assert "ignore_eos" not in asked.body and result["backend"] == "openai-chat"
    assert "secret-key" not in json.dumps(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modelled", "H100 SXM"], "--modelled is about an engine in this process"),
        (["--set", "memory.block_size=8"], "--set is about an engine in this process"),
        (["--metric-percentiles", "50;90"], "--metric-percentiles 50;90: expected numbers"),
        (["--metric-percentiles", "101"], "expected numbers from 0 to 100"),
        (["--extra-body", "[1]"], "--extra-body [1]: expected a JSON object"),
        (["--timeout", "0"], "--timeout 0.0: expected a positive"),
        (["--api-key-env", "NO_SUCH_KEY"], "--api-key-env NO_SUCH_KEY: this variable is not set"),
        (["--plot", "figure.png"], "expected a name that ends in .html or .svg"),
        (["--goodput", "ttft"], "goodput 'ttft': expected ttft:MS"),
        (["--request-rate", "0"], "--request-rate 0.0: expected a positive"),
        (["--max-concurrency", "0"], "max_concurrency=0: expected at least 1"),
        (["--requests-in", "a", "--trace", "b"], "both say what is played"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        assert main(["bench", "serve", "--url", server.url, *FEW, *arguments]) != 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--max-concurrency", "2"], ["--plot", "a.html"], ["--request-rate", "inf"], ["--text"]],
)
def test_an_option_for_http_is_not_ignored_without_a_server(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *FEW, *arguments]) != 0
    said = capsys.readouterr().err
    assert f"{' '.join(arguments)} is for" in said or f"{arguments[0]} is for" in said
    assert "playing over HTTP: add --url" in said


def test_a_run_without_an_answer_has_failed(tmp_path: Path) -> None:
    async def broken(asked: Asked, answer: Answer) -> None:
        await answer.whole(500, {"error": {"message": "the engine failed"}})

    with serving(broken) as server:
        result = serve(server, tmp_path, "--num-warmups", "0", code=1)
    assert result["failed"] == 6 and result["median_ttft_ms"] is None


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        url = server.url
    assert main(["bench", "serve", "--url", url, *FEW]) == 1
    assert "no server answers at" in capsys.readouterr().err


def test_the_plot_shows_every_latency_and_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "figure.html"
    with serving() as server:
        serve(server, tmp_path, "--plot", str(path), "--goodput", "ttft:500")
    text = path.read_text(encoding="utf-8")
    assert all(name in text for name in ("TTFT", "TPOT", "end to end", "fake: fixed 4 in"))


def test_ctrl_c_ends_with_what_was_measured(tmp_path: Path) -> None:
    stuck = threading.Event()

    async def one_then_none(asked: Asked, answer: Answer) -> None:
        if len(server.asked) > 2:
            stuck.set()
            await answer.start()
            await answer.token("so far")
            await asyncio.sleep(3600)
        await as_asked(asked, answer)

    out = tmp_path / "result.json"
    with serving(one_then_none) as server:
        words = ["bench", "serve", "--url", server.url, "--json", str(out), *FEW, "--num-warmups",
                 "0", "--max-concurrency", "1"]  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-m", "minserve", *words], stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert stuck.wait(120)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    result = json.loads(out.read_text())
    assert result["completed"] == 2 and not result["complete"] and result["failed"] == 0
    assert result["interrupted"] + result["not_sent"] == 4
    assert "Incomplete" in said
