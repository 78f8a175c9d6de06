"""What a retention says about pages is what its mask needs, and no group is planned too small."""

from __future__ import annotations

import pytest
from config.asked import MIXED, MODEL, WINDOWS, config_of
from hypothesis import given
from hypothesis import strategies as st

from minserve.config import resolve
from minserve.memory import plan_blocks, plan_groups
from minserve.memory.groups import RETENTIONS, retention_of
from minserve.memory.plan import primary_of
from minserve.spec import CacheSpec, CacheTensor

TENSORS = (CacheTensor("key", 1, 8), CacheTensor("value", 1, 8))
windows = st.one_of(st.none(), st.integers(1, 60))


@given(window=windows, size=st.sampled_from([1, 3, 8, 16]), computed=st.integers(0, 300))
def test_pages_before_the_first_read_one_hold_nothing_that_is_seen(window, size, computed):
    retention = retention_of(CacheSpec(TENSORS, window), size)
    oldest = 0 if window is None else max(0, computed - window + 1)
    first = retention.first_read(computed)
    assert first * size <= oldest
    assert oldest - first * size < size or window is None
    assert retention.first_kept(computed) <= first
    # Another sample computes the last token again.
    assert retention.first_kept(computed) <= retention.first_read(max(0, computed - 1))
    assert retention.keeps_all == (window is None)


@given(
    window=windows,
    size=st.sampled_from([1, 3, 8, 16]),
    requests=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), min_size=1, max_size=6),
)
def test_requests_never_hold_more_than_the_most_pages(window, size, requests):
    retention = retention_of(CacheSpec(TENSORS, window), size)
    per_request = -(-400 // size)
    held = sum(
        -(-(computed + new) // size) - retention.first_kept(computed) for computed, new in requests
    )
    together = sum(new for _, new in requests)
    assert held <= retention.most_blocks(len(requests), together, per_request)


def test_every_retention_that_a_spec_can_have_is_known():
    assert {CacheSpec(TENSORS, window).retention for window in (None, 4)} == RETENTIONS.keys()


@pytest.mark.parametrize("model", [MODEL, MIXED, WINDOWS])
@pytest.mark.parametrize("cache", ["off", "hash"])
@given(kv_bytes=st.integers(0, 1 << 23))
def test_bytes_are_used_to_the_last_page(model, cache, kv_bytes):
    values = {"memory.prefix_cache": cache, "scheduling.max_num_seqs": 4}
    config = resolve(config_of(values | {"scheduling.max_num_batched_tokens": 64}), model)
    plans = plan_groups(config, kv_bytes)
    primary = plans[primary_of([plan.group for plan in plans])]
    assert sum(plan.num_blocks * plan.block_bytes for plan in plans) <= kv_bytes
    assert all(plan.num_blocks <= primary.num_blocks for plan in plans)
    more = plan_blocks(config, primary.num_blocks + 1)
    full = sum(plan.num_blocks * plan.block_bytes for plan in more) > kv_bytes
    # Without a prefix cache, more pages than all requests can hold are of no use.
    usable = 4 * (primary.most_blocks or 0)
    assert full or (cache == "off" and primary.num_blocks <= usable)
    # Any request that the primary group can serve, the others can.
    for plan in plans:
        assert plan.num_blocks >= min(primary.num_blocks, plan.most_blocks or 0)


def test_a_window_that_no_request_outgrows_is_none():
    for longest, groups in ((48, 1), (49, 2)):
        config = resolve(config_of({"scheduling.max_model_len": longest}), MIXED)
        assert len(config.model.cache_groups()) == groups
    config = resolve(
        config_of({"memory.prefix_cache": "radix", "scheduling.max_model_len": 48}), WINDOWS
    )
    assert config.model.cache_groups() == MODEL.cache_groups()
    assert resolve(config.config, config.model).model == config.model
