"""A second model's caches are groups of the same engine: own pages, one admission for all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from engine.fakes import tiny_spec

from minserve.clock import VirtualClock
from minserve.config import EngineConfig, resolve
from minserve.engine.prepare import BatchBuilder
from minserve.memory import KVCache, KVManager, build_manager, plan_groups
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.request import Request, SamplingParams
from minserve.scheduling import StepPlan
from minserve.spec import LayerSpec

SIZE = 4
TARGET = tiny_spec(windows=(None, 6))
DRAFT = replace(TARGET, layers=(LayerSpec(AttentionSpec(2, 2, 4), FeedForwardSpec(16)),) * 3)
GROUPS = (*TARGET.cache_groups(), *DRAFT.cache_groups("draft"))


def both(kv_bytes: int = 40_000, **values: object) -> tuple[KVManager, KVCache]:
    settings = {"device": "cpu", "dtype": "float32", "memory.block_size": SIZE}
    settings |= {"scheduling.max_num_seqs": 3, "scheduling.max_num_batched_tokens": 8}
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    config = resolve(EngineConfig().with_values(settings), TARGET)
    plans = plan_groups(config, kv_bytes, GROUPS)
    cache = KVCache(plans, SIZE, torch.float32, torch.device("cpu"))
    return build_manager(config, plans, VirtualClock(), cache), cache


def request(name: str, length: int = 21) -> Request:
    tokens = list(range(1, length + 1))
    return Request(name, tokens, SamplingParams(), 0.0, 0, max_len=length + 8)


def compute(memory: KVManager, one: Request, count: int) -> None:
    assert memory.reserve(one, count)
    memory.commit(one, count)
    memory.check()


def test_bytes_are_divided_among_the_groups_of_both():
    memory, cache = both()
    full, window, draft = memory.groups
    assert [group.plan.group.model for group in memory.groups] == ["", "", "draft"]
    assert memory.pool is full.pool
    assert full.pool.num_blocks == draft.pool.num_blocks > window.pool.num_blocks
    sizes = [SIZE * group.bytes_per_token(4) for group in GROUPS]
    assert [group.plan.block_bytes for group in memory.groups] == sizes
    used = sum(g.pool.num_blocks * size for g, size in zip(memory.groups, sizes, strict=True))
    assert cache.nbytes == used <= 40_000 < used + sizes[0] + sizes[2]


def test_each_model_sees_its_own_layers_and_no_others():
    memory, cache = both()
    target, draft = cache.layers_of(TARGET), cache.layers_of(DRAFT, "draft")
    assert len(target) == 2 and len(draft) == 3
    assert target[0][0].shape == (memory.groups[0].pool.num_blocks, 1, SIZE, 8)
    assert draft[2][1].shape == (memory.groups[2].pool.num_blocks, 2, SIZE, 4)
    for index, (keys, values) in enumerate((*target, *draft)):
        keys.fill_(index)
        values.fill_(index)
    for index, (keys, values) in enumerate((*target, *draft)):
        assert (keys == index).all() and (values == index).all()


@pytest.mark.parametrize("cache", ["off", "hash", "radix"])
def test_tables_of_both_grow_together_and_are_found_together(cache):
    memory, _ = both(memory__prefix_cache=cache)
    first, second = request("a"), request("b")
    memory.admit(first)
    for count in (8, 8, 5):
        compute(memory, first, count)
    full, window, draft = (group.tables[first] for group in memory.groups)
    assert (full.first, len(full.blocks)) == (draft.first, len(draft.blocks)) == (0, 6)
    assert window.first == 3 and len(window.blocks) == 3
    assert memory.admit(second) == (0 if cache == "off" else 20)
    memory.check()
    if cache != "off":
        assert memory.groups[2].tables[second].blocks == draft.blocks[:5]
        assert memory.groups[1].tables[second].blocks == window.blocks[:2]
    for one in (first, second):
        memory.release(one)
    memory.check()
    assert all(group.pool.num_owned == 0 for group in memory.groups)


def test_a_batch_carries_the_tables_of_its_own_model():
    memory, _ = both()
    one = request("a", 6)
    memory.admit(one)
    memory.reserve(one, 6)
    plan = StepPlan([one], [6])
    target = BatchBuilder(memory, ()).build(plan).batch
    draft = BatchBuilder(memory, (), model="draft").build(plan).batch
    assert len(target.groups) == 2 and len(draft.groups) == 1
    (tables,) = draft.groups
    assert tables.block_tables.tolist() == [memory.groups[2].tables[one].blocks]


def test_swapping_takes_both_or_neither():
    memory, cache = both(scheduling__preemption="swap", memory__host_bytes=8_000)
    one = request("a")
    memory.admit(one)
    for count in (8, 8, 5):
        compute(memory, one, count)
    layers = (*cache.layers_of(TARGET), *cache.layers_of(DRAFT, "draft"))
    for keys, values in layers:
        keys.copy_(torch.randn(keys.shape))
        values.copy_(torch.randn(values.shape))

    def kept() -> list[torch.Tensor]:
        found = []
        for group in memory.groups:
            blocks = group.tables[one].blocks
            for keys, values in group.store.layers.values():  # type: ignore[attr-defined]
                found += [keys[blocks], values[blocks]]
        return found

    before = kept()
    assert memory.swap_out(one)
    memory.check()
    for keys, values in layers:
        keys.zero_()
        values.zero_()
    assert memory.admit(one) == 21
    memory.check()
    assert all(torch.equal(a, b) for a, b in zip(before, kept(), strict=True))
    # The host has no room for the draft's pages of another one: then it keeps none of them.
    other = request("b")
    memory.admit(other)
    for count in (8, 8, 5):
        compute(memory, other, count)
    memory.groups[2].host._free.clear()
    owned = [group.host._owned.copy() for group in memory.groups]
    assert not memory.swap_out(other)
    assert [group.host._owned for group in memory.groups] == owned


def test_a_load_waits_for_the_batch_of_the_model_whose_pages_it_writes():
    _, cache = both()
    table = SimpleNamespace(block_tables=torch.tensor([[1, 2]], dtype=torch.int32))
    cache.submitted(SimpleNamespace(groups=(table,)), "draft")
    assert cache._order.load_waits([2], 2)
    assert not cache._order.load_waits([2], 0) and not cache._order.load_waits([3], 2)
