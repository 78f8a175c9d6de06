"""Requests that were saved are played again exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from minserve.bench.http.saved import load_requests, save_requests
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.traces import TraceError
from minserve.bench.workloads.traffic import TimedRequest, Traffic, traffic
from minserve.files.output_file import OutputError
from minserve.request import SamplingParams


def test_saved_traffic_is_the_same_traffic(tmp_path: Path) -> None:
    jobs = conversations.independent(length_draws.uniform(1, 9), length_draws.uniform(1, 9))
    made = traffic(jobs, 20, 3.5, seed=7)
    save_requests(made, tmp_path / "requests.jsonl")
    assert load_requests(tmp_path / "requests.jsonl") == made


def test_text_and_other_parameters_are_kept(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=5, temperature=0.7, top_p=0.9, seed=11)
    made = Traffic("mine", (TimedRequest(0.0, (), params, prompt_text="Why?"),), None, 3)
    save_requests(made, tmp_path / "requests.jsonl")
    again = load_requests(tmp_path / "requests.jsonl")
    assert again == made and again.requests[0].prompt == "Why?"


def test_a_file_by_hand_needs_only_prompts(tmp_path: Path) -> None:
    path = tmp_path / "by_hand.jsonl"
    path.write_text('{"prompt": "Why?"}\n\n{"prompt": [4, 5], "max_tokens": 3}\n')
    read = load_requests(path)
    assert [request.prompt for request in read.requests] == ["Why?", (4, 5)]
    assert [request.params.max_tokens for request in read.requests] == [128, 3]
    assert [request.gap for request in read.requests] == [1.0, 1.0]
    assert read.rate_per_s is None and read.name == "by_hand"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file has no request"),
        ('{"traffic": "a"}\n', "the file has no request"),
        ("{", "line 1: not JSON"),
        ("[1]", "a JSON list, expected an object"),
        ('{"prompt": ""}', "field 'prompt': expected text or a list of token ids"),
        ('{"prompt": [1.5]}', "field 'prompt'"),
        ('{"prompt": [true]}', "field 'prompt'"),
        ('{"prompt": "a", "max_token": 3}', "field 'max_token': expected gap, prompt"),
        ('{"prompt": "a", "max_tokens": "many"}', "max_tokens"),
        ('{"prompt": "a", "gap": -1}', "field 'gap': -1, expected a number"),
        ('{"prompt": "a"}\n{"gap": "x", "prompt": "b"}', "line 2, field 'gap'"),
        ('{"traffic": "a", "rate_per_s": "fast"}\n{"prompt": "a"}', "line 1, field 'rate_per_s'"),
        ("\xff", "line 1: not JSON"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TraceError, match=words):
        load_requests(path)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--save-requests"):
        save_requests(Traffic("a", (), None, 0), tmp_path / "no" / "requests.jsonl")
