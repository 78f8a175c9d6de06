"""The ladder's report: every rung, the same tokens, counts that fit together."""

from __future__ import annotations

import json

import pytest

from minserve.__main__ import main
from minserve.bench.runs.memory import PACKED, RUNGS
from minserve.bench.runs.memory_sweep import pays_from
from minserve.bench.workloads.heavy_tail import heavy_tail
from minserve.bench.workloads.traces import write_mooncake


@pytest.mark.slow
def test_every_rung_is_reported_with_the_same_tokens(tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    write_mooncake(heavy_tail(1.0, 12, 6), path)
    command = ["bench", "memory", "--trace", str(path), "--kv-tokens", "160", "--repeats", "1"]
    assert main([*command, "--no-progress"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["same_tokens"] and [rung["name"] for rung in result["rungs"]] == list(RUNGS)
    steps = {rung["name"]: rung["steps"] for rung in result["rungs"]}
    first, packed, *_ = rungs = result["rungs"]
    assert packed["name"] == PACKED and steps["continuous, paged"] < steps[PACKED]
    # The same batches and pages; rows of those who have ended are all that the first has more.
    counts = ("steps", "mean_batch", "useful_share")
    assert [first[name] for name in counts] == [packed[name] for name in counts]
    assert first["padded_rows"] > 0 == max(rung["padded_rows"] for rung in rungs[1:])
    assert {first["times_first_rung"]["median"], packed["times_packed_static"]["median"]} == {1.0}
    for rung in result["rungs"]:
        assert rung["name"] in said.err
        assert 0 < rung["useful_share"] <= 1
        assert rung["waiting_p50_s"] <= rung["waiting_p99_s"]
        pool = result["kv_bytes"] * rung["steps"]
        assert sum(rung["kv_byte_steps"].values()) == pool


@pytest.mark.slow
def test_the_sweep_tells_both_gains_at_every_spread(capsys):
    command = ["bench", "memory-sweep", "--spreads", "0", "1", "--num-prompts", "10"]
    assert main([*command, "--kv-tokens", "512", "--repeats", "1", "--no-progress"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["same_tokens"] and result["workload"] == {"num_requests": 10}
    assert [point["spread"] for point in result["sweep"]] == [0.0, 1.0]
    assert all(len(point["times_rectangles"]["values"]) == 1 for point in result["sweep"])
    assert "x rectangles" in said.err and "x packed static" in said.err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--spreads", "-1", "a number, 0 or more"),
        ("--spreads", "nan", "a number, 0 or more"),
        ("--num-prompts", "0", "a whole number, 1 or more"),
        ("--num-prompts", "few", "a whole number, 1 or more"),
    ],
)
def test_what_the_sweep_cannot_take_is_told_in_a_line(option, value, expected, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "memory-sweep", option, value])
    assert f"{value!r}: expected {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gains", "between"),
    [
        ({0.0: 1.0, 0.5: 1.1, 1.0: 1.3, 2.0: 2.0}, (0.5, 1.0)),
        ({0.0: 1.3, 0.5: 1.1, 1.0: 1.3}, (0.5, 1.0)),
        ({0.0: 1.3, 1.0: 1.4}, None),
        ({0.0: 1.0, 1.0: 1.1}, None),
    ],
)
def test_where_pages_begin_to_pay(gains, between):
    assert pays_from(gains) == between
