from __future__ import annotations

import pytest

from minserve.trace import MemoryShares, RunTrace
from tests.widgets.figures import runs
from widgets.figures import memory_shares, parking_lot
from widgets.figures.memory.parking_lot import EMPTY, STRANDED, USED, stays
from widgets.theme import format_percent

CONTIGUOUS = {"memory.layout": "contiguous", "memory.reservation": "power_of_two"}


@pytest.fixture(scope="module")
def reserved() -> RunTrace:
    trace = runs.echo_run(CONTIGUOUS, num_blocks=10)
    assert sum(step.blocks.external_bytes for step in trace.steps)
    return trace


def cells(trace: RunTrace, *states: str) -> int:
    return sum(
        stay.num_pages * (stay.last - stay.first + 1)
        for stay in stays(trace.snapshot())
        if stay.state in states
    )


@pytest.mark.parametrize("which", ["plain", "preempting", "reserved"])
def test_every_owned_page_is_drawn_once_in_every_step(which: str, request) -> None:
    trace: RunTrace = request.getfixturevalue(which)
    assert cells(trace, USED, EMPTY) == sum(step.blocks_used for step in trace.steps)


def test_what_nobody_can_use_is_crossed_out(reserved: RunTrace, plain: RunTrace) -> None:
    assert cells(plain, STRANDED) == 0
    free = sum(
        step.blocks_total - step.blocks_used
        for step in reserved.steps
        if step.blocks.external_bytes
    )
    assert cells(reserved, STRANDED) == free > 0


def test_paged_memory_takes_no_page_without_a_token(plain: RunTrace, reserved: RunTrace) -> None:
    assert cells(plain, EMPTY) == 0 < cells(reserved, EMPTY)


def test_the_parking_lot_says_what_it_needs(plain: RunTrace) -> None:
    without = runs.echo_run({"trace.pages": False})
    with pytest.raises(ValueError, match=r"trace\.pages"):
        parking_lot(without)
    drawn = parking_lot({"contiguous": plain, "paged": plain})
    assert "paged" in drawn.takeaway and drawn.alt and len(drawn.table) % 2 == 0


@pytest.mark.parametrize("which", ["plain", "preempting", "reserved"])
def test_shares_add_up_to_the_pool_and_tokens_to_what_was_kept(which: str, request) -> None:
    trace: RunTrace = request.getfixturevalue(which)
    shares = MemoryShares.of(trace.steps)
    assert shares.taken + shares.free == sum(step.kv_bytes_reserved for step in trace.steps)
    assert shares.used == sum(step.kv_bytes_used for step in trace.steps)
    assert min(getattr(shares, name) for name in MemoryShares.__slots__) >= 0
    drawn = memory_shares({"one": trace, "two": trace})
    assert sum(row["share of taken KV memory"] for row in drawn.table) == pytest.approx(2, abs=1e-3)


def test_both_figures_of_memory_quote_one_and_the_same_share(reserved: RunTrace) -> None:
    share = format_percent(MemoryShares.of(reserved.steps).useful)
    lot, bars = parking_lot(reserved), memory_shares(reserved)
    assert f"fill {share} of the taken" in lot.takeaway and f": {share}." in bars.takeaway
    first = bars.figure.data[0]
    assert first.name == "holds tokens" and list(first.text) == [share]


def test_a_reservation_is_future_while_it_may_be_filled_and_internal_beyond(
    reserved: RunTrace, plain: RunTrace
) -> None:
    taken = MemoryShares.of(reserved.steps)
    assert taken.future and taken.internal and taken.external
    assert taken.useful < MemoryShares.of(plain.steps).useful
