"""The paged backend: pages of the right layer and group, and batches it must refuse."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from minserve.attention.paged import PagedAttention
from minserve.batch import ForwardBatch, GroupTables, to_device
from minserve.kernels.reference.ops import TorchOps
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

BLOCK = 4


def make_spec() -> ModelSpec:
    """Each layer has a cache group of its own: layer 1 another shape, layer 2 a window."""
    mixers = (
        AttentionSpec(4, 2, 8),
        AttentionSpec(2, 1, 16),
        AttentionSpec(4, 2, 8, window=5),
    )
    layers = tuple(LayerSpec(mixer, FeedForwardSpec(8)) for mixer in mixers)
    return ModelSpec("llama", 10, 32, layers, 1e-5, 100, True)


def make_batch(
    query_lens: tuple[int, ...], context_lens: tuple[int, ...], seed: int
) -> ForwardBatch:
    """Every request owns consecutive pages, in an order of its group's own."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for _ in range(3):
        order = torch.randperm(40, generator=generator).to(torch.int32)
        width = max(-(-context // BLOCK) for context in context_lens)
        table = order[: len(context_lens) * width].view(len(context_lens), width)
        positions = [
            torch.arange(context - rows, context)
            for rows, context in zip(query_lens, context_lens, strict=True)
        ]
        slots = torch.cat(
            [
                table[request, where // BLOCK].long() * BLOCK + where % BLOCK
                for request, where in enumerate(positions)
            ]
        )
        groups.append(GroupTables(slots, table))
    empty = torch.empty(0, dtype=torch.int64)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    return ForwardBatch(
        token_ids=torch.zeros(sum(query_lens), dtype=torch.int64),
        positions=torch.cat(positions),
        query_starts=starts,
        kv_lens=torch.tensor(context_lens, dtype=torch.int32),
        groups=tuple(groups),
        sample_rows=empty,
        sampling=cast(Any, None),
        prompt_rows=empty,
        prompt_targets=empty,
        num_prompt_logprobs=-1,
        query_lens=query_lens,
        context_lens=context_lens,
    )


def make_backend(spec: ModelSpec) -> PagedAttention:
    caches = [
        tuple(
            torch.full(
                (40, layer.mixer.num_kv_heads, BLOCK, layer.mixer.head_dim),
                torch.nan,
                dtype=torch.float64,
            )
            for _ in range(2)
        )
        for layer in spec.layers
    ]
    return PagedAttention(spec, cast(Any, caches), TorchOps())


def test_chunked_prefill_equals_one_pass_in_every_layer() -> None:
    spec, lens = make_spec(), (13, 7)
    generator = torch.Generator().manual_seed(0)
    whole, chunked = make_backend(spec), make_backend(spec)
    for layer, item in enumerate(spec.layers):
        heads, kv_heads, head_dim = (
            item.mixer.num_heads,
            item.mixer.num_kv_heads,
            item.mixer.head_dim,
        )
        size = (20, heads + 2 * kv_heads, head_dim)
        qkv = torch.randn(size, generator=generator, dtype=torch.float64)
        cos_sin = torch.randn(13, head_dim, generator=generator, dtype=torch.float64)
        batch = make_batch(lens, lens, 1)
        plan = whole.plan(batch)
        q = plan.store_rotated(qkv.clone(), batch.positions, cos_sin, layer)
        assert q.shape == (20, heads, head_dim)
        expected, lse = plan.attend(q, layer, item.mixer.scores, need_lse=True)
        assert lse is not None and lse.shape == (20, heads)
        done = (0, 0)
        for step in ((5, 1), (1, 5), (7, 1)):
            done = (done[0] + step[0], done[1] + step[1])
            batch = make_batch(step, done, 1)
            rows = batch.positions + torch.tensor([0] * step[0] + [lens[0]] * step[1])
            # The tables of the whole prompts: a shorter batch would draw other pages.
            groups = [
                GroupTables(tables.slots[rows], tables.block_tables)
                for tables in make_batch(lens, lens, 1).groups
            ]
            plan = chunked.plan(replace(batch, groups=tuple(groups)))
            q = plan.store_rotated(qkv[rows], batch.positions, cos_sin, layer)
            out, _ = plan.attend(q, layer, item.mixer.scores)
            assert (out - expected[rows]).abs().max() < 1e-12


def test_a_request_without_rows_is_refused() -> None:
    batch = make_batch((3, 1), (8, 8), 0)
    batch = replace(batch, query_lens=(4, 0))
    with pytest.raises(ValueError, match=r"request 1 .* no rows .* prefix hit"):
        make_backend(make_spec()).plan(batch)


def test_a_context_beyond_the_block_table_is_refused() -> None:
    batch = replace(make_batch((1, 1), (8, 6), 0), context_lens=(8, 9))
    with pytest.raises(ValueError, match=r"request 1 .* attends to 9 tokens.* holds 8"):
        make_backend(make_spec()).plan(batch)


def test_more_rows_than_context_are_refused() -> None:
    batch = replace(make_batch((3, 1), (8, 6), 0), context_lens=(2, 6))
    with pytest.raises(ValueError, match=r"request 0 .* 3 rows .* only 2 tokens"):
        make_backend(make_spec()).plan(batch)


def test_a_tree_in_a_model_with_a_window_is_refused() -> None:
    batch = replace(make_batch((3, 1), (8, 6), 0), tree=torch.tensor([1, 3, 5, -1]))
    with pytest.raises(ValueError, match=r"tree mask in a layer with a sliding window of 5"):
        make_backend(make_spec()).plan(batch)


def test_a_batch_carries_its_tree_to_the_operators() -> None:
    spec = make_spec()
    spec = replace(spec, layers=spec.layers[:2])
    qkv = torch.randn(3, 8, 8, dtype=torch.float64)
    cos_sin = torch.ones(9, 8, dtype=torch.float64)
    results = []
    for tree in (None, torch.tensor([1, 3, 5])):
        batch = pickle.loads(pickle.dumps(make_batch((3,), (8,), 0)))
        batch = replace(batch, groups=batch.groups[:2], tree=tree)
        backend = make_backend(spec)
        for cache in backend.caches[0]:
            cache.fill_(1.0)
        plan = backend.plan(to_device(batch, torch.device("cpu")))
        q = plan.store_rotated(qkv.clone(), batch.positions, cos_sin, 0)
        results.append(plan.attend(q, 0, spec.layers[0].mixer.scores))
    (chain, _), (branches, _) = results
    assert torch.equal(chain[:2], branches[:2]) and not torch.equal(chain[2], branches[2])


def test_a_cache_per_layer_is_required() -> None:
    with pytest.raises(ValueError, match="1 layer caches for a model of 3"):
        PagedAttention(make_spec(), [(torch.empty(1, 1, 1, 1),) * 2], TorchOps())
