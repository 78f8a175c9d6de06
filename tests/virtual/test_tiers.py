"""Modelled transfers between tiers: bytes over a link, on the virtual clock."""

from __future__ import annotations

import pytest

from minserve.bench.runs.sessions import IDLE, resume_s, returning
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.build import build_virtual_engine
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from minserve.virtual.transfers import HostLink

SPEC = SHAPES["llama-3.1-8b"].spec()
PAGE = 16 * SPEC.kv_bytes_per_token(2)


def back(link: HostLink, host_pages: int = 64, disk: bool = False):
    cost = CostModel(DEVICES["A100 80GB PCIe"], "bfloat16", 0.5, 2e-4, link)
    config = IDLE.with_values(
        {
            "memory.kv_bytes": 20 * PAGE,
            "memory.host_bytes": host_pages * PAGE,
            "memory.disk_bytes": (1 << 20) if disk else 0,
            "scheduling.max_model_len": 320,
        }
    )
    engine = build_virtual_engine(SPEC, config, cost)
    drive(engine, returning(256, 320))
    engine.close()
    assert engine.trace.totals.loaded_tokens == 256
    return engine.trace


def test_a_load_takes_its_bytes_over_the_bus():
    free, bus = back(HostLink(1e18, 0.0)), back(HostLink(32e9))
    # 16 pages in; what goes out of their way goes at the same time.
    expected = 16 * PAGE / 32e9
    assert resume_s(bus) - resume_s(free) == pytest.approx(expected, rel=0.2)
    assert bus.totals.transfer_s > 1000 * free.totals.transfer_s


def test_every_page_from_disk_is_read_once_and_pushes_one_or_two_others_there():
    host, disk = back(HostLink(32e9)), back(HostLink(32e9, disk_bytes_per_s=1e9), 20, disk=True)
    # Out of the host to make room for it, and out of the device through the host.
    passed = (resume_s(disk) - resume_s(host)) * 1e9 / PAGE
    assert 2 * 16 <= passed <= 3 * 16


def test_with_a_prefix_cache_the_pool_may_be_larger_than_its_batch():
    cost = CostModel(DEVICES["A100 80GB PCIe"])
    values = {"memory.kv_bytes": 50 * PAGE, "scheduling.max_model_len": 64}
    pools = [
        build_virtual_engine(SPEC, IDLE.with_values(values | each), cost).memory.pool.num_blocks
        for each in ({}, {"memory.prefix_cache": "off"})
    ]
    assert pools == [50, 4]
