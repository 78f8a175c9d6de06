from __future__ import annotations

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import theme
from widgets.figures import page_map, slots
from widgets.figures.memory.page_table import count_pages, pages
from widgets.figures.time.lanes import lanes
from widgets.figures.time.slot_grid import occupancy


@pytest.mark.parametrize("which", ["plain", "preempting"])
def test_busy_cells_are_the_scheduled_requests(which: str, request) -> None:
    trace: RunTrace = request.getfixturevalue(which)
    grid = occupancy(trace.snapshot())
    cells = [cell for stays in grid.values() for cell in stays]
    assert len(cells) == trace.totals.scheduled
    assert len(set(cells)) == len(cells), "two requests in one slot at one step"
    drawn = slots(trace, 4)
    table = sum(row["last step"] - row["first step"] + 1 for row in drawn.table)
    assert table == trace.totals.scheduled
    share = theme.format_percent(trace.totals.scheduled / (4 * len(trace)))
    assert share in drawn.figure.layout.annotations[0].text
    assert share in drawn.takeaway


def test_empty_cells_are_drawn_too(plain: RunTrace) -> None:
    drawn = slots(plain, 6)
    empty = sum(sum(t.x) for t in drawn.figure.data if t.name == "empty slot")
    assert empty == 6 * len(plain) - plain.totals.scheduled
    hatched = next(t for t in drawn.figure.data if t.name == "empty slot")
    assert hatched.marker.pattern.shape == "/"


def test_sides_are_measured_against_the_same_number_of_slots(plain: RunTrace) -> None:
    narrow = runs.echo_run({"scheduling.max_num_seqs": 2})
    drawn = slots({"narrow": narrow, "wide": plain})
    rooms = {row["slot"] for row in drawn.table if row["side"] == "wide"}
    assert drawn.figure.layout.yaxis.range == drawn.figure.layout.yaxis2.range
    assert max(rooms) + 1 == drawn.figure.layout.yaxis.range[0] + 0.5


def test_colours_of_requests_do_not_depend_on_hashing(plain: RunTrace) -> None:
    first = [trace.marker.color for trace in slots(plain).figure.data]
    assert first == [trace.marker.color for trace in slots(plain).figure.data]
    assert first[0] == theme.request_look(0).colour


@pytest.mark.parametrize("which", ["plain", "preempting"])
def test_page_map_agrees_with_the_pool_at_every_step(which: str, request) -> None:
    trace: RunTrace = request.getfixturevalue(which)
    run = trace.snapshot()
    found = lanes(run)
    for index, step in enumerate(run.steps):
        grid = pages(run, index, 4, found)
        words = count_pages(grid, 4)
        assert words.total == step.blocks_total
        assert words.owned == step.blocks_used
        assert words.shared == 0
        if not step.num_finished:
            assert words.tokens == step.kv_tokens


def test_page_map_draws_each_page_once(preempting: RunTrace) -> None:
    drawn = page_map(preempting)
    held, rest = drawn.figure.data[0], drawn.figure.data[1]
    total = preempting.steps[0].blocks_total
    assert len(held.x) == len(rest.x) == total == len(drawn.table)
    # What a page holds and what it wastes fill its cell.
    assert [a + b for a, b in zip(held.x, rest.x, strict=True)] == pytest.approx([0.92] * total)
    owned = sum(row["owner"] != "free" for row in drawn.table)
    assert f"{owned} of {total} pages" in drawn.takeaway
    assert f"{owned} owned" in drawn.alt


def test_page_map_of_a_thousand_pages_keeps_within_the_marks() -> None:
    trace = runs.echo_run(num_blocks=1100)
    drawn = page_map(trace, 3)
    assert max(len(mark.x) for mark in drawn.figure.data) <= theme.MAX_MARKS
    assert len(drawn.table) == 1100
    assert {mark.name for mark in drawn.figure.data if mark.showlegend is not False} >= {"0", "1"}


def test_page_map_says_what_it_needs(plain: RunTrace) -> None:
    with pytest.raises(ValueError, match=r"trace\.pages"):
        page_map(runs.echo_run({"trace.pages": False}))
    with pytest.raises(ValueError, match="this trace keeps 14 steps"):
        page_map(plain, 14)
    with pytest.raises(ValueError, match="no steps"):
        page_map(RunTrace())
    bare = RunTrace()
    bare.restore(plain.totals, plain.steps, plain.requests)
    with pytest.raises(ValueError, match="block_size=16"):
        page_map(bare)
    assert page_map(bare, -1, block_size=4).table
