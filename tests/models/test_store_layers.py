"""Rows that skip layers leave in their caches what the layers themselves would have left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.oracle import random_model, save
from models.ragged import PagedSequences
from models.test_parity import FAMILIES, LONGEST, SEEDS, SEQUENCES, VOCAB, configs, few
from models.test_stack import HIDDEN, Drawn, mixed_layers

from minserve.attention.paged import PagedAttention
from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import Ops
from minserve.kernels.cpu.native import native_ops
from minserve.layers import ForwardContext
from minserve.models import Decoder, load_spec, load_weights
from minserve.models.weights import build_weights
from minserve.quantization.formats import FORMATS, FormatPlan
from minserve.spec import LayerSpec, ModelSpec

BACKENDS = ["torch", *(["native"] if why_not_native() is None else [])]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
PLANS = {name: FormatPlan(layers=each) for name, each in FORMATS.items()}


def operators(backend: str) -> Ops:
    return native_ops() if backend == "native" else TorchOps()


def caches_of(paged: PagedSequences, dtype: torch.dtype) -> list[Any]:
    own = paged.caches(dtype)
    return [own[paged.spec.cache_layer(index)] for index in range(paged.spec.num_layers)]


@torch.inference_mode()
def assert_stores_the_same(decoder: Decoder, sequences: list[list[int]], seed: int) -> None:
    """A ragged batch, layer by layer: the pages after `forward` and after `store_layers` on the
    same input, whole pools with what nobody wrote."""
    spec, dtype, native = decoder.spec, decoder.weights.dtype, decoder.ops.name == "native"
    paged = PagedSequences(spec, sequences, LONGEST, 4, seed)
    ran, stored = (PagedAttention(spec, caches_of(paged, dtype), decoder.ops) for _ in range(2))
    half = [len(tokens) // 2 for tokens in sequences]
    rest = [len(tokens) - n for tokens, n in zip(sequences, half, strict=True)]
    for counts in (half, rest):
        if not any(counts):
            continue
        batch = paged.batch(counts)
        h = decoder.embed(batch.token_ids)
        contexts = [ForwardContext(batch, backend.plan(batch)) for backend in (ran, stored)]
        for index in range(spec.num_layers):
            before = h.clone()
            decoder.store_layers(h, contexts[1], index, index + 1)
            assert torch.equal(h, before), "store_layers changed the residual stream"
            h = decoder.run_layers(h, contexts[0], index, index + 1)
    limit = 0.0 if native else {torch.bfloat16: 0.1, torch.float64: 1e-11}.get(dtype, 1e-4)
    for expected, found in zip(ran.caches, stored.caches, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert not theirs.isnan().all()
            size = theirs.nan_to_num().abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=limit * size, equal_nan=True)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_stores_what_its_layers_store(family: str, backend: str, plan: str) -> None:
    ops = operators(backend)

    @settings(few, max_examples=6)
    @given(configs(family), SEQUENCES, st.sampled_from(list(DTYPES)), SEEDS)
    def check(config: Any, sequences: list[list[int]], dtype: str, seed: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            save(random_model(config, seed), Path(directory))
            spec = load_spec(directory)
            weights = load_weights(
                directory, spec, DTYPES[dtype], progress=False, plan=PLANS[plan],
                packing=ops.packing,
            )  # fmt: skip
        assert_stores_the_same(Decoder(spec, weights, ops, max_position=64), sequences, seed)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_of_any_mixture_store_what_they_store(backend: str) -> None:
    """Biases, normed heads, windows, no positions, and layers that store nothing."""
    ops, seen = operators(backend), set[object]()

    @settings(few, max_examples=60)
    @given(mixed_layers(), SEQUENCES, st.sampled_from(list(PLANS)), SEEDS)
    def check(
        layers: tuple[LayerSpec, ...], sequences: list[list[int]], plan: str, seed: int
    ) -> None:
        spec = ModelSpec("llama", VOCAB, HIDDEN, layers, 1e-5, 64, tie_embeddings=False)
        drawn = Drawn(torch.Generator().manual_seed(seed))
        weights = build_weights(
            spec, drawn, torch.float64, torch.device("cpu"), PLANS[plan], ops.packing
        )
        assert_stores_the_same(Decoder(spec, weights, ops), sequences, seed)
        for layer in layers:
            mixer = layer.mixer
            seen.update((mixer.cache_layer is None, mixer.rope is None, plan))
            seen.add(("norm", mixer.qk_norm))

    check()
    assert seen >= {True, False, "dense", "int8", ("norm", True), ("norm", False)}


def test_skipped_layers_all_read_the_same_stream() -> None:
    """One call over several layers stores what a call for each does; layers before and after it
    keep their pages as they were."""
    ops = operators(BACKENDS[-1])
    from minserve.models.blocks import AttentionSpec, FeedForwardSpec

    layers = (LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(32)),) * 4
    spec = ModelSpec("llama", VOCAB, HIDDEN, layers, 1e-5, 64, tie_embeddings=False)
    drawn = Drawn(torch.Generator().manual_seed(1))
    weights = build_weights(spec, drawn, torch.float32, torch.device("cpu"), packing=ops.packing)
    decoder = Decoder(spec, weights, ops)
    pools = []
    for calls in ([(1, 3)], [(1, 2), (2, 3)], [(1, None)]):
        paged = PagedSequences(spec, [[1, 2, 3, 4, 5], [6]], LONGEST, seed=2)
        backend = PagedAttention(spec, paged.caches(torch.float32), ops)
        batch = paged.batch([5, 1])
        context = ForwardContext(batch, backend.plan(batch))
        h = decoder.embed(batch.token_ids)
        for start, stop in calls:
            decoder.store_layers(h, context, start, stop)
        pools.append([torch.stack(layer) for layer in backend.caches])
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(*pools[:2], strict=True)
    )
    written = [[not layer.isnan().all() for layer in pool] for pool in pools]
    assert written[0] == [False, True, True, False] and written[2] == [False, True, True, True]
