"""`minserve generate --json`: an object a line with all that an output knows, and nothing else."""

from __future__ import annotations

import io
import json
import sys

import pytest

from minserve import LLM, EngineConfig, SamplingParams
from minserve.__main__ import main
from minserve.request import RequestMetrics

ENGINE = ["--model", "zoo/draft", "--dtype", "float32", "--device", "cpu", "--temperature", "0"]
WORDS = [*ENGINE, "--max-tokens", "6", "--ignore-eos"]


@pytest.fixture(autouse=True)
def no_roofline(monkeypatch):
    """The machine's limits are measured elsewhere."""
    monkeypatch.setattr("minserve.cli.report.roofline_figure", lambda llm: None)


def lines(capsys) -> tuple[list[dict], str]:
    """What was printed on stdout, as objects; and stderr."""
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_an_object_has_what_the_output_has(capsys):
    assert main(["generate", "--json", "def f():", *WORDS]) == 0
    (found,), err = lines(capsys)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    with LLM("zoo/draft", EngineConfig(dtype="float32", device="cpu")) as llm:
        output = llm.generate("def f():", params)[0]
    assert found["prompt"] == "def f():" and found["text"] == output.text
    assert found["token_ids"] == list(output.token_ids) and len(found["token_ids"]) == 6
    assert found["prompt_token_ids"] == list(output.prompt_token_ids)
    assert found["finish_reason"] == "length"
    assert found["stop_reason"] is None and found["error"] is None
    assert "6 out" in err


def test_every_field_and_figure_of_the_metrics_is_there(capsys):
    assert main(["generate", "--json", "def f():", "--quiet", *WORDS]) == 0
    (found,), err = lines(capsys)
    assert err == ""
    told = found["metrics"]
    assert vars(RequestMetrics(0.0, 0.0, 0.0, 0.0, 0, 0, 0)).keys() < told.keys()
    assert told["num_output_tokens"] == 6 and told["num_cached_tokens"] == 0
    assert told["ttft_s"] == told["first_token_s"] - told["arrival_s"] > 0
    assert told["tpot_s"] > 0 and told["e2e_s"] > told["ttft_s"] and told["queue_s"] >= 0
    assert told["acceptance_rate"] is None


def test_several_prompts_are_lines_in_their_order(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("import \u20ac\n"))
    assert main(["generate", "--json", "x = [", "-", "class A:", *WORDS]) == 0
    found, err = lines(capsys)
    assert [one["prompt"] for one in found] == ["x = [", "import \u20ac\n", "class A:"]
    assert all(len(one["token_ids"]) == 6 for one in found)
    assert "3 requests" in err and "18 out" in err


def test_a_stop_string_is_the_reason_that_is_told(capsys):
    assert main(["generate", "--json", "import os\nimport sys\n", *WORDS, "--stop", "i"]) == 0
    (found,), _ = lines(capsys)
    assert (found["finish_reason"], found["stop_reason"]) == ("stop", "i")


def test_a_refused_prompt_is_an_object_with_its_error_beside_the_others(capsys):
    assert main(["generate", "--json", "x " * 3000, "x = [", *WORDS]) == 1
    found, err = lines(capsys)
    assert [one["finish_reason"] for one in found] == ["error", "length"]
    assert found[0]["error"] in err and found[0]["text"] == "" and found[1]["error"] is None
