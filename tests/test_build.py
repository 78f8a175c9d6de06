"""Putting an engine together: pool sizes, the largest batch, and what the trace says of itself."""

from __future__ import annotations

import pytest
import torch
from engine.fakes import tiny_spec

from minserve.attention import PagedAttention
from minserve.build import build_engine, new_trace
from minserve.clock import WallClock
from minserve.config import EngineConfig, resolve
from minserve.execution.profiling import largest_batch
from minserve.execution.runner import EagerRunner
from minserve.kernels import select_ops
from minserve.loading import load_model
from minserve.memory import GroupPlan, KVCache
from minserve.models import Decoder, random_weights


def resolved(**values: object):
    config = EngineConfig(dtype="float32", device="cpu")
    return resolve(
        config.with_values({k.replace("__", "."): v for k, v in values.items()}), tiny_spec()
    )


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize(("budget", "requests"), [(64, 4), (512, 64), (130, 3), (4, 4), (1000, 2)])
def test_the_largest_batch_is_as_large_as_the_scheduler_may_ask_for_and_runs(
    budget, requests, drafts
):
    config = resolved(scheduling__max_num_batched_tokens=budget, scheduling__max_num_seqs=requests)
    batch = largest_batch(config, drafts)
    # No request is longer than max_model_len, so a large budget may not be filled.
    assert batch.num_tokens == min(budget, requests * config.max_model_len)
    drawn = batch.num_tokens if drafts else requests
    assert batch.num_requests == requests
    assert batch.num_samples == batch.sampling.num_samples == drawn
    ops = select_ops("torch", config.device, config.dtype)
    blocks = batch.groups[0].block_tables.shape[1]
    plans = [GroupPlan(group, blocks) for group in config.model.cache_groups()]
    cache = KVCache(plans, config.config.memory.block_size, config.dtype, config.device)
    decoder = Decoder(config.model, random_weights(config.model, torch.float32), ops)
    attention = PagedAttention(config.model, cache.layers_of(config.model), ops)
    runner = EagerRunner(decoder, attention, config.device, WallClock(), 256)
    result = runner.collect(runner.submit(batch))
    assert len(result.token_ids) == drawn
    assert all(token >= 0 for token in result.token_ids)


def test_the_pool_takes_the_bytes_it_was_given_and_no_more_than_requests_can_use():
    loaded = load_model(
        "zoo/base",
        EngineConfig(dtype="float32", device="cpu").with_values({"memory.kv_bytes": 4 << 20}),
        progress=False,
    )
    engine = build_engine(loaded)
    pool = engine.memory.pool
    assert pool.num_blocks == (4 << 20) // loaded.config.block_bytes
    small = EngineConfig(dtype="float32", device="cpu").with_values(
        {"scheduling.max_num_seqs": 1, "scheduling.max_model_len": 64, "memory.kv_bytes": 1 << 30}
    )
    assert build_engine(load_model("zoo/base", small, progress=False)).memory.pool.num_blocks == 4


def test_a_trace_says_which_model_machine_and_versions_it_comes_from():
    header = new_trace("name", resolved()).header
    assert header.model == "name"
    assert header.provenance == "measured"
    assert {"minserve", "torch"} <= set(header.versions)
    assert header.device
    assert header.config["scheduling.max_num_seqs"] == 64
