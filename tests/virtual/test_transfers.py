"""Transfers on modelled time: one after the other each way, and nobody reads what is not there."""

from __future__ import annotations

import pytest
from engine.fakes import tiny_spec

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from minserve.virtual.transfers import Direction, HostLink, VirtualStore

LINK = HostLink(bytes_per_s=1000.0, latency_s=0.5)


def test_transfers_queue_behind_one_another_and_an_idle_link_starts_at_once():
    clock = VirtualClock()
    way = Direction(LINK, clock)
    assert way.start(1000).done_s == 1.5
    assert way.start(500).done_s == 2.5
    clock.wait_until(10.0)
    assert way.start(0).done_s == 10.5
    assert way.start(1000, not_before_s=20.0).done_s == 21.5


def test_saving_costs_nobody_time_until_somebody_wants_the_page_back():
    clock = VirtualClock()
    store = VirtualStore([1000], clock, LINK).group(0)
    store.save([1, 2], [7, 8])
    assert clock.now() == 0.0
    store.load([7], [3])
    # Two pages out are there at 2.5; one page in takes 1.5 more.
    assert clock.now() == 4.0
    store.load([8], [4])
    assert clock.now() == 5.5


def test_both_ways_work_at_once_and_other_slots_do_not_wait():
    clock = VirtualClock()
    store = VirtualStore([1000], clock, LINK, device_bytes_per_s=4000.0).group(0)
    store.save([1], [7])
    clock.wait_until(2.0)
    store.save([2], [8])  # Until 3.5.
    store.load([7], [5])
    assert clock.now() == 3.5
    store.copy([1], [2])
    assert clock.now() == 4.0
    store.write_slot(8, b"")
    assert store.read_slot(8) == b"" and clock.now() == pytest.approx(4.0, rel=1e-6)


def served(link, **values):
    page = 16 * tiny_spec().kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 4,
            "memory.kv_bytes": 12 * page,
            "memory.watermark": 0.0,
            **values,
        }
    )
    cost = CostModel(DEVICES["A100 80GB SXM"], overhead_s=0.001)
    engine = build_virtual_engine(tiny_spec(), config, cost, host_link=link)
    drive(engine, at_once([[5] * 40] * 6, [fixed_length(60)] * 6))
    engine.memory.check()
    return engine.trace


def test_swapping_is_charged_to_the_link_and_recomputing_is_not():
    page = 16 * tiny_spec().kv_bytes_per_token(2)
    swap = {"scheduling.preemption": "swap", "memory.host_bytes": 64 * page}
    again = {"scheduling.preemption": "recompute"}
    quick, slow = HostLink(1e12, 0.0), HostLink(1e6, 0.0)
    runs = {name: served(link, **swap) for name, link in (("quick", quick), ("slow", slow))}
    assert runs["quick"].totals.preemptions == runs["slow"].totals.preemptions > 0
    assert runs["slow"].totals.recomputed_tokens == 0
    moved = sum(step.blocks.swapped_in_blocks for step in runs["slow"].steps)
    extra_s = runs["slow"].totals.duration_s - runs["quick"].totals.duration_s
    assert extra_s >= moved * page * (1 / 1e6 - 1 / 1e12) * 0.999 > 0
    assert served(quick, **again).totals.duration_s == served(slow, **again).totals.duration_s


def test_a_link_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match="expected positive bandwidths"):
        HostLink(bytes_per_s=0)
