"""A block table is drawn as the engine has it: numbers, shared pages, copies."""

from __future__ import annotations

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets.figures import block_tables
from widgets.figures.memory.block_tables import tables_of


@pytest.fixture(scope="module")
def sharing() -> RunTrace:
    return runs.sharing_run()


def test_the_numbers_are_those_of_the_trace(sharing: RunTrace) -> None:
    run = sharing.snapshot()
    for index, step in enumerate(run.steps):
        tables = tables_of(run, index, 4)
        for part in step.requests:
            table = tables[part.request_id, part.sample_index]
            assert tuple(entry.page for entry in table) == part.blocks
            assert sum(entry.tokens for entry in table) == part.stop


def test_samples_share_the_prompts_full_pages_and_copy_the_last(sharing: RunTrace) -> None:
    drawn = block_tables(sharing)
    tables = {name: [row for row in drawn.table if row["request"] == name] for name in ("0", "0.1")}
    assert [row["shared"] for row in tables["0"]] == ["yes", "yes", ""]
    assert [row["page"] for row in tables["0"]][:2] == [row["page"] for row in tables["0.1"]][:2]
    copies = [row for row in drawn.table if row["copy of page"] is not None]
    assert len(copies) == 1 == sharing.totals.copied_blocks
    assert copies[0]["copy of page"] == tables["0"][2]["page"] != copies[0]["page"]
    assert "2 pages in more than one table" in drawn.takeaway
    assert f"page {copies[0]['page']} is a copy of page" in drawn.takeaway
    legend = {trace.name for trace in drawn.figure.data if trace.showlegend is not False}
    assert {"shared by several requests", "copied before it was written"} <= legend


def test_lines_end_at_the_pages_of_the_pool(sharing: RunTrace) -> None:
    drawn = block_tables(sharing)
    lines = [t for t in drawn.figure.data if t.type == "scatter" and t.mode == "lines"]
    pool = sorted({row["page"] for row in drawn.table})
    for line, name in zip(lines, ("0", "0.1"), strict=True):
        ends = [x - 0.5 for x in line.x[1::3]]
        assert [pool[int(x)] for x in ends] == [
            r["page"] for r in drawn.table if r["request"] == name
        ]


def test_requests_can_be_named_and_a_run_without_pages_is_refused(sharing: RunTrace) -> None:
    named = block_tables(sharing, 1, requests=["0", "0.1", "1"])
    assert {row["request"] for row in named.table} == {"0", "0.1", "1"}
    with pytest.raises(ValueError, match="none holds a page"):
        block_tables(sharing, requests=["9"])
    with pytest.raises(ValueError, match=r"trace\.pages"):
        block_tables(runs.echo_run({"trace.pages": False}))
    with pytest.raises(ValueError, match="no steps"):
        block_tables(RunTrace(), block_size=4)
