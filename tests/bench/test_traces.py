"""Recorded traffic is read as it was written, and a bad row is named by file, line and field."""

# ruff: noqa: E501 (a table of rows reads best as rows)

from __future__ import annotations

from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.bench.workloads.traces import (
    TraceError,
    TraceRow,
    read_trace,
    to_traffic,
    write_mooncake,
)

SAMPLES = Path(__file__).parent / "samples"
"""Made by ourselves in each format; nobody's data."""


@pytest.mark.parametrize(
    ("name", "requests"),
    [("mooncake.jsonl", 24), ("azure.csv", 20), ("burstgpt.csv", 18), ("sharegpt.json", 4)],
)
def test_every_format_is_told_by_its_first_line_and_read(name, requests):
    rows = read_trace(SAMPLES / name)
    assert len(rows) == requests
    assert min(row.timestamp_s for row in rows) >= 0
    assert all(row.input_tokens >= 1 and row.output_tokens >= 1 for row in rows)
    played = to_traffic(rows, name=name)
    assert [len(r.prompt_token_ids) for r in played.requests] == [r.input_tokens for r in rows]
    assert [r.params.max_tokens for r in played.requests] == [r.output_tokens for r in rows]


def test_times_survive_to_the_microsecond_and_to_the_millisecond():
    azure = read_trace(SAMPLES / "azure.csv")
    assert azure[0].timestamp_s == 0
    text = (SAMPLES / "azure.csv").read_text().split("\n")
    seconds = [float(line.split(",")[0].split(":")[-1]) for line in text[1:3]]
    assert azure[1].timestamp_s == pytest.approx((seconds[1] - seconds[0]) % 60, abs=2e-6)
    played = to_traffic(azure)
    arrivals = 0.0
    for row, request in zip(azure, played.requests, strict=True):
        arrivals += request.gap / played.rate_per_s
        assert arrivals == pytest.approx(row.timestamp_s, abs=1e-9)


def test_mooncake_is_written_and_read_back(tmp_path):
    rows = read_trace(SAMPLES / "mooncake.jsonl")
    write_mooncake(rows, tmp_path / "again.jsonl")
    assert read_trace(tmp_path / "again.jsonl") == rows
    azure = read_trace(SAMPLES / "azure.csv")
    write_mooncake(azure, tmp_path / "azure.jsonl")
    again = read_trace(tmp_path / "azure.jsonl")
    assert [(r.input_tokens, r.output_tokens) for r in again] == [
        (r.input_tokens, r.output_tokens) for r in azure
    ]


def test_equal_hash_ids_are_equal_prefixes_and_different_ones_are_not():
    rows = [
        TraceRow(0.0, 1100, 1, (1, 2, 3)),
        TraceRow(1.0, 1100, 1, (1, 2, 4)),
        TraceRow(2.0, 1100, 1, (9, 2, 3)),
        TraceRow(3.0, 700, 1),
    ]
    prompts = [request.prompt_token_ids for request in to_traffic(rows).requests]
    assert prompts[0][:1024] == prompts[1][:1024]
    assert prompts[0][1024:] != prompts[1][1024:]
    assert prompts[0][:512] != prompts[2][:512]
    assert [len(prompt) for prompt in prompts] == [1100, 1100, 1100, 700]


def test_too_long_requests_are_left_out_and_counted():
    rows = [TraceRow(0.0, 100, 10), TraceRow(1.0, 5000, 10), TraceRow(2.0, 90, 10)]
    played = to_traffic(rows, name="short", max_len=200)
    assert len(played.requests) == 2
    assert "1 of 3 longer than 200 tokens, left out" in played.name
    with pytest.raises(ValueError, match="none of 3 requests fits into 50 tokens"):
        to_traffic(rows, max_len=50)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.jsonl", '{"timestamp": 0, "input_length": 5}\n', r"m.jsonl, line 1, field 'output_length': it is missing"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 5, "output_length": 5}\n{"timestamp"', "m.jsonl, line 2: not JSON"),
        ("m.jsonl", '{"timestamp": 0, "input_length": -5, "output_length": 5}', "line 1, field 'input_length': -5, expected at least 1"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 5.5, "output_length": 5}', "'5.5', expected a whole|5.5, expected a whole number"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1]}', "field 'hash_ids': 1 of them for 600 tokens"),
        ("a.csv", "TIMESTAMP,ContextTokens\n", "line 1, field 'GeneratedTokens': no such column; the header has: TIMESTAMP, ContextTokens"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,5\n", "line 2, field 'TIMESTAMP': 'yesterday', expected 2023"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,5,5\n2023-11-16 18:15:47.6,x,5\n", "line 3, field 'ContextTokens': 'x', expected a whole number"),
        ("b.csv", "Timestamp,Model,Request tokens,Response tokens\nsoon,M,5,5\n", "line 2, field 'Timestamp': 'soon', expected seconds"),
        ("b.csv", "Timestamp,Model,Request tokens,Response tokens\n5,M,,5\n", "line 2, field 'Request tokens': it is empty"),
        ("s.json", '[{"id": 1}]', "s.json, line 1, field 'conversations': expected a list of turns"),
        ("s.json", '[{"conversations": [{"value": "a"}, {"from": "gpt"}]}]', "field 'value': None, expected text"),
        ("s.json", "[", "s.json, line 1: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=words):
        read_trace(tmp_path / name)


def test_an_unknown_format_says_which_are_known(tmp_path):
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(ValueError, match="mooncake, azure, burstgpt, sharegpt"):
        read_trace(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is none of the trace formats"),
        (b"\xff\xfe\x00", "trace.csv is no text"),
        (
            b'{"timestamp": 0, "input_length": 9999, "output_length": 9, "hash_ids": []}',
            "none of 1",
        ),
    ],
)
def test_a_trace_that_cannot_be_played_is_a_sentence_of_the_command(
    tmp_path, capsys, content, said
):
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    assert main(["bench", "serve", "--trace", str(path)]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
