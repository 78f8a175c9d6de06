"""Whole layers in one call give, bit for bit, what the operators give one by one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from models.oracle import random_model, save
from models.ragged import PagedSequences, run_pieces
from models.test_parity import FAMILIES, LONGEST, SEEDS, SEQUENCES, configs, few

from minserve.attention.paged import PagedAttention
from minserve.kernels import why_not_native
from minserve.kernels.cpu.native import NativeOps, native_ops
from minserve.models import Decoder, load_spec, load_weights
from minserve.spec import ModelSpec

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
SIZES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class OneByOne(NativeOps):
    """The same operators, without the one call."""

    def layer_stack(self, layers: Any) -> None:
        return None


def loaded(config: Any, seed: int, dtype: torch.dtype) -> tuple[ModelSpec, list[Decoder]]:
    """One model behind the operators called one by one, and behind the one call."""
    with tempfile.TemporaryDirectory() as directory:
        save(random_model(config, seed), Path(directory))
        spec = load_spec(directory)
        ops = OneByOne(), native_ops()
        packed = ops[0].packed_shape(dtype)
        weights = load_weights(directory, spec, dtype, progress=False, packed=packed)
    return spec, [Decoder(spec, weights, each, max_position=64) for each in ops]


@pytest.mark.parametrize("dtype", SIZES, ids=SIZES.values())
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_many(family: str, dtype: torch.dtype) -> None:
    taken = []

    @settings(few, max_examples=25)
    @given(config=configs(family), sequences=SEQUENCES, seed=SEEDS)
    def check(config: Any, sequences: list[list[int]], seed: int) -> None:
        spec, decoders = loaded(config, seed, dtype)
        results = []
        for decoder in decoders:
            paged = PagedSequences(spec, sequences, LONGEST, 4, seed)
            backend = PagedAttention(spec, paged.caches(dtype), decoder.ops)
            found = run_pieces(decoder, backend, paged, paged.random_pieces(seed, largest=12))
            pages = torch.stack([torch.stack(layer) for layer in backend.caches]).nan_to_num(7.0)
            results.append((torch.cat(found), pages))
        for one_by_one, in_one_call in zip(*results, strict=True):
            assert torch.equal(one_by_one, in_one_call)
        taken.append(decoders[1].runs_in_one_call)

    check()
    packs = native_ops().packed_shape(dtype) is not None
    assert any(taken) == packs, "the one call was never taken, or where nothing is packed"


SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("dtype", SIZES, ids=SIZES.values())
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_call_gives_the_bits_of_many_over_trees(family: str, dtype: torch.dtype) -> None:
    """A prompt, a chain and a decode beside two trees, whose batch runs in one call."""
    from transformers import LlamaConfig, Qwen3Config

    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[family](**SMALL)
    spec, decoders = loaded(config, 3, dtype)
    sequences = [list(range(5 * n, 5 * n + 20)) for n in range(5)]
    star, branches = (1, 3, 5, 9, 17, 33), (1, 3, 5, 11)
    masks = (*star, *[-1] * 5, *branches, -1, *(1, 3, 7))
    streams, pages = [], []
    for decoder, tree in ((decoders[0], masks), (decoders[1], masks), (decoders[1], None)):
        paged = PagedSequences(spec, sequences, LONGEST, 4, seed=2)
        backend = PagedAttention(spec, paged.caches(dtype), decoder.ops)
        before = paged.batch([7, 0, 9, 12, 6])
        h = decoder.run_layers(
            decoder.embed(before.token_ids), backend.plan(before), before.positions, 0, 4
        )
        batch = paged.batch([6, 5, 4, 1, 3])
        if tree is not None:
            batch = replace(batch, tree=torch.tensor(tree))
        plan, h = backend.plan(batch), decoder.embed(batch.token_ids)
        if decoder is decoders[0] or not decoder.runs_in_one_call:
            h = decoder.run_layers(h, plan, batch.positions, 0, 4)
        else:
            assert plan.run_stack(decoder._stack, h, batch.positions, 0, 4) is not None
        streams.append(h)
        pages.append(torch.stack([torch.stack(layer) for layer in backend.caches]).nan_to_num(7.0))
    assert torch.equal(streams[0], streams[1]) and torch.equal(pages[0], pages[1])
    # What sees all rows before it is the same in a chain; a row with a sibling before it is not.
    same = [bool(torch.equal(*rows)) for rows in zip(streams[1], streams[2], strict=True)]
    assert same == [True] * 2 + [False] * 4 + [True] * 5 + [True] * 2 + [False] * 2 + [True] * 4


def test_a_tree_in_a_stack_with_a_window_is_refused() -> None:
    from transformers import MistralConfig

    spec, (_, decoder) = loaded(MistralConfig(**SMALL, sliding_window=6), 3, torch.float32)
    assert decoder.runs_in_one_call
    paged = PagedSequences(spec, [list(range(9))], LONGEST)
    backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
    batch = replace(paged.batch([3]), tree=torch.tensor([1, 3, 5]))
    tables = [group.block_tables for group in batch.groups]
    planned = [
        decoder.ops.plan_attention(
            table, batch.query_starts, batch.kv_lens, batch.query_lens, batch.context_lens,
            batch.tree,
        )
        for table in tables
    ]  # fmt: skip
    h, slots = decoder.embed(batch.token_ids), [group.slots for group in batch.groups]
    before = h.clone()
    with pytest.raises(ValueError, match=r"tree mask in a layer with a sliding window of 6 tok"):
        decoder._stack.run(
            h, batch.positions, backend.caches, backend.group_of_layer, slots, planned, 0, 4
        )
    assert torch.equal(h, before)


def test_layers_can_be_cut_anywhere() -> None:
    from transformers import LlamaConfig

    spec, (_, decoder) = loaded(LlamaConfig(**SMALL), 3, torch.float32)
    assert decoder.runs_in_one_call
    streams = []
    for cuts in ((0, 4), (0, 1, 4), (0, 2, 2, 3, 4)):
        paged = PagedSequences(spec, [list(range(9)), [5]], LONGEST)
        backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
        batch = paged.batch([9, 1])
        plan, h = backend.plan(batch), decoder.embed(batch.token_ids)
        assert plan.run_stack(decoder._stack, h.clone(), batch.positions, 0, 4) is not None
        for start, stop in pairwise(cuts):
            h = decoder.run_layers(h, plan, batch.positions, start, stop)
        streams.append(h)
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])
