"""Layers that use the weights of an earlier one: the model of equal copies, in fewer bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lossless.windowed import ask, outputs, prompt, run
from models.own_blocks import MixtureSpec, MixtureWeights, TemperedSpec

from minserve.build import build_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig, Facts, resolve
from minserve.engine import Engine
from minserve.hardware import WorkCounter
from minserve.kernels import select_ops
from minserve.loading import LoadedModel
from minserve.models import DecoderWeights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.models.blocks.base import held_bytes
from minserve.models.weights import build_weights
from minserve.quantization.formats import FORMATS, FormatPlan
from minserve.spec import LayerSpec, ModelSpec

VOCAB, HIDDEN, LONGEST = 97, 32, 256
USUAL = LayerSpec(AttentionSpec(4, 2, 8, qk_norm=True, qkv_bias=True), FeedForwardSpec(48))
SANDWICH = LayerSpec(
    AttentionSpec(4, 2, 8, window=20), FeedForwardSpec(48, activation="gelu_tanh"), True, 0.5
)
OWN = LayerSpec(TemperedSpec(4, 2, 8), MixtureSpec(24, 3))
SHARING = {
    "next to it": (USUAL, 0, USUAL, 2),
    "all over": (USUAL, SANDWICH, 0, 1, 0, USUAL),
    "own blocks": (OWN, USUAL, 0),
}
"""Layers, and the numbers of the layers whose weights the others use."""
BACKENDS = ("torch", "auto")


def model(*layers: LayerSpec | int) -> ModelSpec:
    made: list[LayerSpec] = []
    for layer in layers:
        shared = isinstance(layer, int)
        made.append(replace(made[layer], weights_of=layer) if shared else layer)  # type: ignore[index,type-var]
    return ModelSpec("made", VOCAB, HIDDEN, tuple(made), 1e-5, LONGEST, tie_embeddings=False)


def without_sharing(spec: ModelSpec) -> ModelSpec:
    return replace(spec, layers=tuple(replace(each, weights_of=None) for each in spec.layers))


@dataclass(frozen=True)
class Copies:
    """Random tensors by name, the same for a layer and those that use its weights in `spec`."""

    spec: ModelSpec

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            named = self.spec.layers[int(index)].weights_of
            name = f"{index if named is None else named}.{rest}"
        numbers = torch.randn(
            shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))
        )
        if "norm" in name:
            return 1 + numbers / 4
        return numbers if len(shape) == 1 else numbers * (4.0 / shape[1] ** 0.5)

    def has(self, name: str) -> bool:
        return True


def weights_of(
    spec: ModelSpec, copied: ModelSpec, plan: FormatPlan, backend: str
) -> DecoderWeights:
    device = torch.device("cpu")
    packing = select_ops(backend, device, torch.float64).packing
    return build_weights(copied, Copies(spec), torch.float64, device, plan, packing)


def engine_over(spec: ModelSpec, weights: DecoderWeights, plan: FormatPlan, backend: str) -> Engine:
    values = {
        "dtype": "float64", "device": "cpu", "kernels.backend": backend, "memory.block_size": 8,
        "memory.check_integrity": True, "memory.prefix_cache": "hash",
        "scheduling.max_num_batched_tokens": 24, "scheduling.max_num_seqs": 3,
    }  # fmt: skip
    config = resolve(EngineConfig().with_values(values), spec, facts=Facts(storage=plan))
    return build_engine(LoadedModel("made", Path(), config, None, {}, weights), VirtualClock())


PLANS = {name: FormatPlan(layers=each) for name, each in FORMATS.items()}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHARING)
def test_tokens_are_those_of_equal_copies(name: str, backend: str, plan: FormatPlan) -> None:
    spec = model(*SHARING[name])
    copied = without_sharing(spec)
    found = []
    for each in (spec, copied):
        weights = weights_of(spec, each, plan, backend)
        engine = engine_over(each, weights, plan, backend)
        requests = ask(engine, [prompt(n, length) for n, length in enumerate((70, 7, 41))], 20)
        run(engine)
        found.append(outputs(requests))
    assert found[0] == found[1]
    assert all(len(set(tokens)) > 3 for tokens in found[0])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", SHARING)
def test_shared_weights_are_held_and_counted_once(name: str, plan: FormatPlan) -> None:
    spec = model(*SHARING[name])
    copied = without_sharing(spec)
    weights = weights_of(spec, spec, plan, "torch")
    own = [index for index, layer in enumerate(spec.layers) if layer.weights_of is None]
    for index, layer in enumerate(spec.layers):
        shared = layer.weights_of
        assert weights.layers[index] is weights.layers[index if shared is None else shared]
    assert len({id(layer) for layer in weights.layers}) == len(own)
    assert weights.nbytes == sum(spec.weight_parts(8, plan).values())
    whole = weights_of(spec, copied, plan, "torch")
    saved = whole.nbytes - weights.nbytes
    assert (
        saved
        == sum(whole.layers[index].nbytes for index in range(spec.num_layers) if index not in own)
        > 0
    )
    extra = [layer for index, layer in enumerate(spec.layers) if index not in own]
    fewer = copied.num_parameters() - spec.num_parameters()
    assert fewer == sum(layer.parameters(HIDDEN) for layer in extra)
    if plan is PLANS["dense"]:
        assert fewer * 8 == saved
    # Every layer has a cache of its own, and computes.
    assert spec.kv_bytes_per_token(8) == copied.kv_bytes_per_token(8)
    counts = [WorkCounter(each, 8, storage=plan).count((5,), (9,), 1) for each in (spec, copied)]
    assert counts[0].flops == counts[1].flops
    assert counts[0].activation_bytes == counts[1].activation_bytes
    assert counts[0].kv_write_bytes == counts[1].kv_write_bytes
    # So many rows look up every token and use every expert; one row uses one of three.
    counter = WorkCounter(spec, 8, storage=plan)
    many, one = (counter.count((rows,), (rows,), 1).weight_bytes for rows in (500, 1))
    assert many == weights.nbytes
    blocks = [weights.layers[index].feed_forward for index in own]
    mixtures = [each for each in blocks if isinstance(each, MixtureWeights)]
    unused = sum(held_bytes((each.up[1:], each.down[1:])) for each in mixtures)
    assert one == many - unused - (VOCAB - 1) * HIDDEN * 8


@pytest.mark.parametrize("named", [-1, 1, 2, 7])
def test_only_an_earlier_layer_has_weights_to_share(named: int) -> None:
    layers = (USUAL, replace(USUAL, weights_of=named), USUAL)
    with pytest.raises(ValueError, match=f"layer 1 uses the weights of layer {named}: expected an"):
        ModelSpec("made", VOCAB, HIDDEN, layers, 1e-5, LONGEST, tie_embeddings=False)


def test_shared_weights_are_not_shared_on() -> None:
    with pytest.raises(ValueError, match="layer 2 uses the weights of layer 1: expected an earli"):
        model(USUAL, 0, 1)


@pytest.mark.parametrize(
    "other",
    [
        replace(USUAL, mixer=replace(USUAL.mixer, window=9)),
        replace(USUAL, feed_forward=FeedForwardSpec(48, activation="gelu_tanh")),
        replace(USUAL, sandwich_norms=True),
        replace(USUAL, residual_multiplier=0.5),
        replace(USUAL, mixer=replace(USUAL.mixer, cache_layer=0)),
    ],
)
def test_layers_that_differ_share_no_weights(other: LayerSpec) -> None:
    with pytest.raises(ValueError, match="layer 1 uses the weights of layer 0, and the two diff"):
        model(USUAL, replace(other, weights_of=0))


def test_a_shorter_model_still_shares() -> None:
    """A window that no request outgrows is dropped in a layer and in those that use its weights."""
    spec = model(SANDWICH, 0)
    for longest, window in ((16, None), (20, None), (21, 20)):
        shorter = spec.up_to(longest)
        assert [layer.mixer.cache.window for layer in shorter.layers] == [window, window]
        assert [layer.weights_of for layer in shorter.layers] == [None, 0]
    assert spec.up_to(21) is spec
