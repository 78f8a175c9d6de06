"""Whole layers in one call give, bit for bit, what the operators give one by one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.oracle import random_model, save
from models.ragged import PagedSequences, run_pieces
from models.test_parity import FAMILIES, LONGEST, SEEDS, SEQUENCES, VOCAB, configs, few

from minserve.attention.paged import PagedAttention
from minserve.kernels import why_not_native
from minserve.kernels.cpu.native import NativeOps, native_ops
from minserve.layers import ForwardContext
from minserve.models import Decoder, load_spec, load_weights
from minserve.models.blocks.attention import AttentionSpec
from minserve.models.blocks.gated import FeedForwardSpec
from minserve.models.weights import build_weights
from minserve.quantization.formats import DENSE, FORMATS, FormatPlan
from minserve.spec import LayerSpec, ModelSpec, RopeSpec

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
INT8 = FORMATS["int8"]
SIZES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class OneByOne(NativeOps):
    """The same operators, without the one call."""

    def layer_stack(self, layers: Any) -> None:
        return None


def loaded(config: Any, seed: int, dtype: torch.dtype) -> tuple[ModelSpec, list[Decoder]]:
    """One model behind the operators called one by one, and behind the one call."""
    ops = native_ops()
    with tempfile.TemporaryDirectory() as directory:
        save(random_model(config, seed), Path(directory))
        spec = load_spec(directory)
        weights = load_weights(directory, spec, dtype, progress=False, packing=ops.packing)
    return spec, [Decoder(spec, weights, each, max_position=64) for each in (OneByOne(), ops)]


def assert_same_bits(
    spec: ModelSpec,
    decoders: list[Decoder],
    sequences: list[list[int]],
    dtype: torch.dtype,
    seed: int,
) -> None:
    """All sequences in random pieces: equal logits, and equal pages."""
    results = []
    for decoder in decoders:
        paged = PagedSequences(spec, sequences, LONGEST, 4, seed)
        own = paged.caches(dtype)
        caches = [own[spec.cache_layer(index)] for index in range(spec.num_layers)]
        backend = PagedAttention(spec, caches, decoder.ops)
        found = run_pieces(decoder, backend, paged, paged.random_pieces(seed, largest=12))
        pages = torch.cat([torch.stack(layer).flatten() for layer in backend.caches])
        results.append((torch.cat(found), pages.nan_to_num(7.0)))
    for one_by_one, in_one_call in zip(*results, strict=True):
        assert torch.equal(one_by_one, in_one_call)
    assert not results[0][0].isnan().any()


@pytest.mark.parametrize("dtype", SIZES, ids=SIZES.values())
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_many(family: str, dtype: torch.dtype) -> None:
    taken = []

    @settings(few, max_examples=25)
    @given(config=configs(family), sequences=SEQUENCES, seed=SEEDS)
    def check(config: Any, sequences: list[list[int]], seed: int) -> None:
        spec, decoders = loaded(config, seed, dtype)
        assert_same_bits(spec, decoders, sequences, dtype, seed)
        taken.append(decoders[1].runs_in_one_call)

    check()
    packs = native_ops().packing("dense", dtype) is not None
    assert any(taken) == packs, "the one call was never taken, or where nothing is packed"


HIDDEN = 24
PROJECTIONS = ("qkv", "output", "gate_up", "down")


@st.composite
def mixed_layers(draw: st.DrawFn) -> tuple[LayerSpec, ...]:
    """Layers that differ in all that a layer may differ in; some only have queries."""
    layers: list[LayerSpec] = []
    for index in range(draw(st.integers(1, 5))):
        owners = [i for i in range(index) if layers[i].mixer.cache_layer is None]
        shared = draw(st.none() | st.sampled_from(owners)) if owners else None
        if shared is None:
            kv_heads, head_dim = draw(st.sampled_from([(1, 8), (2, 8), (2, 16)]))
            window = draw(st.sampled_from([None, None, 3, 7]))
        else:
            cache = layers[shared].mixer.cache
            (key, _), window = cache.tensors, cache.window
            kv_heads, head_dim = key.num_heads, key.head_dim
        mixer = AttentionSpec(
            num_heads=kv_heads * draw(st.integers(1, 4)),
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            qkv_bias=draw(st.booleans()),
            output_bias=draw(st.booleans()),
            qk_norm=draw(st.booleans()),
            cache_layer=shared,
            rope=draw(st.sampled_from([None, RopeSpec(), RopeSpec(theta=100.0)])),
            scale=draw(st.sampled_from([None, 0.3])),
            softcap=draw(st.sampled_from([None, 2.0])),
        )
        feed_forward = FeedForwardSpec(
            intermediate_size=draw(st.sampled_from([17, 32, 64])),
            bias=draw(st.integers(0, 9)) == 0,
            activation=draw(st.sampled_from(["silu", "gelu_tanh"])),
        )
        layers.append(
            LayerSpec(
                mixer,
                feed_forward,
                sandwich_norms=draw(st.booleans()),
                residual_multiplier=draw(st.sampled_from([1.0, 0.22, 1.7])),
            )
        )
    return tuple(layers)


@dataclass(frozen=True)
class Drawn:
    """A `TensorReader` of random tensors: norms around 1, biases of size 1, and weights that keep
    the size of their inputs."""

    generator: torch.Generator

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        numbers = torch.randn(shape, generator=self.generator)
        if "norm" in name:
            return 1 + numbers / 4
        return numbers if len(shape) == 1 else numbers / shape[1] ** 0.5

    def has(self, name: str) -> bool:
        return True


def mixed(
    layers: tuple[LayerSpec, ...], plan: FormatPlan, dtype: torch.dtype, seed: int
) -> tuple[ModelSpec, list[Decoder]]:
    """Like `loaded`, for layers and weight formats of any mixture."""
    spec = ModelSpec("llama", VOCAB, HIDDEN, layers, 1e-5, 64, tie_embeddings=False)
    drawn = Drawn(torch.Generator().manual_seed(seed))
    ops = native_ops()
    weights = build_weights(spec, drawn, dtype, torch.device("cpu"), plan, ops.packing)
    return spec, [Decoder(spec, weights, each) for each in (OneByOne(), ops)]


@pytest.mark.parametrize("dtype", SIZES, ids=SIZES.values())
def test_one_call_gives_the_bits_of_many_in_any_mixture(dtype: torch.dtype) -> None:
    seen = set()

    @settings(few, max_examples=120)
    @given(data=st.data(), layers=mixed_layers(), sequences=SEQUENCES, seed=SEEDS)
    def check(
        data: st.DataObject, layers: tuple[LayerSpec, ...], sequences: list[list[int]], seed: int
    ) -> None:
        places = [(index, name) for index in range(len(layers)) for name in PROJECTIONS]
        chosen = data.draw(st.sets(st.sampled_from(places)))
        plan = FormatPlan(
            layers=data.draw(st.sampled_from([DENSE, INT8])),
            head=data.draw(st.sampled_from([DENSE, INT8])),
            exceptions={place: data.draw(st.sampled_from([DENSE, INT8])) for place in chosen},
        )
        spec, decoders = mixed(layers, plan, dtype, seed)
        assert_same_bits(spec, decoders, sequences, dtype, seed)
        stack = decoders[1]._stack
        takes = [False] * len(layers) if stack is None else list(stack.takes)
        for index, (layer, taken) in enumerate(zip(layers, takes, strict=True)):
            kinds = [plan.of(index, name).kind for name in PROJECTIONS]
            packed = [native_ops().packing(kind, dtype) is not None for kind in kinds]
            own = layer.mixer.cache_layer is None
            assert taken == (own and all(packed) and not layer.feed_forward.bias)
            if taken:
                seen.update((*kinds, layer.feed_forward.activation, layer.mixer.softcap))
                seen.update((layer.residual_multiplier, f"sandwich {layer.sandwich_norms}"))
        seen.add("holes" if any(takes) and not all(takes) else "all")

    check()
    kinds = {"int8", "silu", "gelu_tanh", "sandwich True", "sandwich False"}
    assert seen >= kinds | {None, 2.0, 1.0, 0.22, 1.7, "holes", "all"}


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
        decoder.forward(before, backend.plan(before))
        batch = paged.batch([6, 5, 4, 1, 3])
        if tree is not None:
            batch = replace(batch, tree=torch.tensor(tree))
        plan, h = backend.plan(batch), decoder.embed(batch.token_ids)
        if decoder is decoders[0] or not decoder.runs_in_one_call:
            h = decoder.run_layers(h, ForwardContext(batch, plan))
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
            h = decoder.run_layers(h, ForwardContext(batch, plan), start, stop)
        streams.append(h)
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])
