"""The ladder's report: every rung, the same tokens, counts that fit together."""

from __future__ import annotations

import json

import pytest

from minserve.__main__ import main
from minserve.bench.heavy_tail import heavy_tail
from minserve.bench.memory import PACKED, RUNGS
from minserve.bench.traces import write_mooncake


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
