"""Layers that differ in what they attend to: the cache of another layer, a rotary table, a cap of
their own. Each sees what it should, and what shares a cache stores nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lossless.windowed import ask, outputs, prompt, run
from torch import Tensor

from minserve.build import build_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig, resolve
from minserve.engine import Engine
from minserve.kernels import TorchOps
from minserve.kernels.matrix import Matrix
from minserve.layers.rotary import rotary_table
from minserve.loading import LoadedModel
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.models.weights import DecoderWeights, random_weights
from minserve.spec import LayerSpec, ModelSpec, RopeSpec

VOCAB, LONGEST = 97, 256


def spec_of(*mixers: AttentionSpec) -> ModelSpec:
    layers = tuple(LayerSpec(mixer, FeedForwardSpec(48)) for mixer in mixers)
    return ModelSpec("llama", VOCAB, 32, layers, 1e-5, LONGEST, tie_embeddings=False)


OWN = AttentionSpec(4, 2, 8)
WINDOWED = replace(OWN, window=20)
SPECS = {
    "last layers": spec_of(OWN, OWN, replace(OWN, cache_layer=0), replace(OWN, cache_layer=1)),
    "windows": spec_of(OWN, WINDOWED, replace(WINDOWED, cache_layer=1), WINDOWED),
    "smaller window": spec_of(WINDOWED, replace(OWN, window=9, cache_layer=0), OWN),
    "window in a full cache": spec_of(OWN, replace(WINDOWED, cache_layer=0), OWN),
    "rotary of its own": spec_of(
        OWN, replace(OWN, rope=RopeSpec(theta=300.0)), replace(OWN, rope=None), OWN
    ),
    "scale and cap of its own": spec_of(
        replace(OWN, scale=0.9, softcap=1.5), replace(WINDOWED, softcap=0.8), OWN
    ),
    "normed heads": spec_of(replace(OWN, qk_norm=True), replace(OWN, qk_norm=True, cache_layer=0)),
}


def weights_of(spec: ModelSpec) -> DecoderWeights:
    """Random, and large enough that attention is not uniform."""
    weights = random_weights(spec, torch.float64, seed=3)
    for layer in weights.layers:
        mixer, feed_forward = layer.mixer, layer.feed_forward
        for matrix in (mixer.qkv, mixer.output, feed_forward.gate_up, feed_forward.down):
            matrix.codes.mul_(12.0)
    return weights


def product(matrix: Matrix, x: Tensor) -> Tensor:
    return F.linear(x, matrix.codes, matrix.bias)


def dense_logits(spec: ModelSpec, weights: DecoderWeights, tokens: list[int]) -> Tensor:
    """`[length, vocab_size]`: the definition, whole matrices, no cache."""
    ops, length = TorchOps(), len(tokens)
    where = torch.arange(length)
    h = weights.embedding.apply(torch.tensor(tokens))
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for index, (layer, stored) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        mixer = layer.mixer
        table = rotary_table(mixer.rope, 8, LONGEST, torch.float64)
        weights_of_mixer, between = stored.mixer, stored.feed_forward
        heads = product(weights_of_mixer.qkv, stored.input_norm.apply(ops, h))
        heads = heads.view(length, mixer.projected_heads, mixer.head_dim)
        q = heads[:, : mixer.num_heads].contiguous()
        q = q if weights_of_mixer.q_norm is None else weights_of_mixer.q_norm.apply(ops, q)
        ops.rotary_(q, where, table)
        if mixer.cache_layer is None:
            k = heads[:, mixer.num_heads : -mixer.num_kv_heads].contiguous()
            k = k if weights_of_mixer.k_norm is None else weights_of_mixer.k_norm.apply(ops, k)
            ops.rotary_(k, where, table)
            kept[index] = (k, heads[:, -mixer.num_kv_heads :])
        k, v = (x.repeat_interleave(mixer.group_size, 1) for x in kept[spec.cache_layer(index)])
        distance = where[:, None] - where[None, :]
        seen = (distance >= 0) & (distance < (mixer.window or length))
        scores = torch.einsum("qhd,khd->hqk", q, k) * mixer.scores.scale
        if mixer.softcap is not None:
            scores = mixer.softcap * (scores / mixer.softcap).tanh()
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", mixed, v).reshape(length, -1)
        h = h + product(weights_of_mixer.output, attended)
        gate, up = product(between.gate_up, stored.post_norm.apply(ops, h)).chunk(2, -1)
        h = h + product(between.down, F.silu(gate) * up)
    return product(weights.head, weights.final_norm.apply(ops, h))


def engine_over(spec: ModelSpec, weights: DecoderWeights, **values: object) -> Engine:
    settings = {
        "dtype": "float64",
        "device": "cpu",
        "memory.block_size": 8,
        "memory.check_integrity": True,
        "scheduling.max_num_batched_tokens": 32,
        "scheduling.max_num_seqs": 3,
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    config = resolve(EngineConfig().with_values(settings), spec)
    return build_engine(LoadedModel("made", Path(), config, None, {}, weights), VirtualClock())


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", SPECS)
def test_tokens_are_those_of_the_dense_model(name, backend):
    spec = SPECS[name]
    weights = weights_of(spec)
    engine = engine_over(spec, weights, kernels__backend=backend, memory__prefix_cache="hash")
    requests = ask(engine, [prompt(n, length) for n, length in enumerate((100, 7, 61))], 25)
    run(engine)
    for request, tokens in zip(requests, outputs(requests), strict=True):
        choices = dense_logits(spec, weights, request.token_ids).argmax(-1).tolist()
        assert tokens == choices[request.num_prompt_tokens - 1 : -1]
        assert len(set(tokens)) > 3, "the model does not depend on what it attends to"


def test_a_layer_that_shares_is_not_compiled():
    spec = SPECS["last layers"]
    message = r"layer 2 cannot be compiled, .*: set kernels\.compile=False"
    with pytest.raises(ValueError, match=message):
        engine_over(spec, weights_of(spec), kernels__compile=True)


def test_a_layer_that_shares_is_in_no_group_and_costs_no_bytes():
    spec = SPECS["last layers"]
    (group,) = spec.cache_groups()
    assert group.layers == (0, 1)
    assert spec.kv_bytes_per_token(8) == 2 * 2 * 2 * 8 * 8
    assert spec.num_parameters() == sum(w.numel() for w in _all(weights_of(spec)))
    engine = engine_over(spec, weights_of(spec))
    assert engine.memory.groups[0].plan.block_bytes == 8 * spec.kv_bytes_per_token(8)
    caches = engine.memory._store.layers_of(spec)  # type: ignore[attr-defined]
    assert caches[2][0] is caches[0][0] and caches[3][1] is caches[1][1]


def _all(weights: DecoderWeights) -> list[Tensor]:
    found = [weights.final_norm.weight, weights.head.codes, weights.embedding.table.codes]
    for layer in weights.layers:
        mixer, feed_forward = layer.mixer, layer.feed_forward
        norms = (layer.input_norm, mixer.q_norm, mixer.k_norm, layer.post_norm)
        found += [norm.weight for norm in norms if norm is not None]
        matrices = (mixer.qkv, mixer.output, feed_forward.gate_up, feed_forward.down)
        found += [matrix.codes for matrix in matrices]
    return found


@pytest.mark.parametrize(
    ("mixers", "said"),
    [
        ((OWN, replace(OWN, cache_layer=1)), "expected an earlier layer with a cache of its own"),
        (
            (OWN, replace(OWN, cache_layer=0), replace(OWN, cache_layer=1)),
            "layer 2 attends to the cache of layer 1: expected an earlier layer",
        ),
        ((OWN, replace(OWN, num_kv_heads=1, cache_layer=0)), "heads have another shape"),
        ((WINDOWED, replace(OWN, cache_layer=0)), "layer 1 sees all tokens, .* keeps 20"),
        ((WINDOWED, replace(OWN, window=21, cache_layer=0)), "layer 1 sees 21 tokens"),
    ],
)
def test_a_cache_that_cannot_be_shared_is_refused(mixers, said):
    with pytest.raises(ValueError, match=said):
        spec_of(*mixers)
