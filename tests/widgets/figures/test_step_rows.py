from __future__ import annotations

import pytest
from engine.fakes import tiny_spec

from minserve import EngineConfig
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.hardware import DEVICES
from minserve.trace import RunTrace
from minserve.virtual import CostModel
from tests.widgets.figures import runs
from widgets.figures import step_rows

KINDS = ("longest", "batch", "power_of_two", "none")


def run(kind: str) -> RunTrace:
    policy = "static" if kind == "batch" else "continuous"
    config = EngineConfig().with_values(
        {"kernels.padding": kind, "scheduling.max_num_seqs": 4, "scheduling.max_model_len": 64,
         "scheduling.max_num_batched_tokens": 32, "memory.kv_bytes": 1 << 20,
         "trace.per_request": True, "scheduling.policy": policy}
    )  # fmt: skip
    engine = build_virtual_engine(tiny_spec(64), config, CostModel(DEVICES["H100 SXM"]))
    lengths = ((5, 9), (21, 6), (3, 12), (7, 8), (12, 3))
    drive(engine, at_once([[1] * n for n, _ in lengths], [fixed_length(n) for _, n in lengths]))
    return engine.trace


@pytest.fixture(scope="module")
def padded() -> dict[str, RunTrace]:
    return {kind: run(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_every_step_is_drawn_once(kind: str, padded: dict[str, RunTrace]) -> None:
    trace = padded[kind]
    for place, step in enumerate(trace.steps):
        drawn = step_rows(trace, place).table
        assert sum(row["tokens"] for row in drawn) == step.num_tokens
        assert sum(row["padding"] for row in drawn) == step.num_padded_rows
    assert (trace.totals.padded_rows > 0) == (kind != "none")


def test_the_widest_step_of_the_first_side_is_shown_for_all(padded: dict[str, RunTrace]) -> None:
    drawn = step_rows({"padded": padded["longest"], "packed": padded["none"]})
    sides = {name: [row for row in drawn.table if row["side"] == name] for name in
             ("padded", "packed")}  # fmt: skip
    widest = max(step.num_rows for step in padded["longest"].steps)
    assert sum(row["tokens"] + row["padding"] for row in sides["padded"]) == widest
    assert [row["tokens"] for row in sides["padded"]] == [row["tokens"] for row in sides["packed"]]
    assert "all of them tokens" in drawn.takeaway and "padding" in drawn.takeaway and drawn.alt


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"trace\.per_request"):
        step_rows(runs.echo_run({"trace.per_request": False}))
    with pytest.raises(ValueError, match="every side has kept"):
        step_rows(runs.echo_run(), 10_000)
