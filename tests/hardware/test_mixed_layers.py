"""Work of a model whose layers share caches and weights, counted again row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minserve.hardware import WorkCounter
from minserve.models import random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.quantization.formats import FORMATS, FormatPlan
from minserve.spec import LayerSpec, ModelSpec

HIDDEN, VOCAB = 32, 97
OWN = AttentionSpec(4, 2, 8, qkv_bias=True, output_bias=True, qk_norm=True)
FIRST = LayerSpec(OWN, FeedForwardSpec(48, bias=True), sandwich_norms=True)
SECOND = LayerSpec(replace(OWN, window=5), FeedForwardSpec(40))
READER = LayerSpec(replace(OWN, cache_layer=0), FeedForwardSpec(40))
LAYERS = (
    FIRST,
    SECOND,
    READER,
    LayerSpec(replace(OWN, window=3, cache_layer=1), FeedForwardSpec(40)),
    replace(SECOND, weights_of=1),
    replace(READER, weights_of=2),
)
INT8 = FORMATS["int8"]
PLANS = {
    "dense": FormatPlan(),
    "int8": FormatPlan(layers=INT8),
    "int8 head": FormatPlan(layers=INT8, head=INT8),
    "one": FormatPlan(exceptions={(1, "down"): INT8}),
}
QUERIES, CONTEXTS = (3, 1, 7, 9), (10, 4, 7, 30)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_weights_are_read_once(plan: FormatPlan, dtype: torch.dtype, tied: bool) -> None:
    spec = ModelSpec("made", VOCAB, HIDDEN, LAYERS, 1e-5, 64, tied)
    weights = random_weights(spec, dtype, plan=plan)
    assert weights.nbytes == sum(spec.weight_parts(dtype.itemsize, plan).values())
    counter = WorkCounter(spec, dtype.itemsize, storage=plan)
    looked_up = sum(QUERIES) * (weights.embedding.nbytes // VOCAB)
    head = 0 if tied else weights.head.nbytes
    layers = weights.nbytes - weights.embedding.nbytes - head - weights.final_norm.nbytes
    silent = counter.count(QUERIES, CONTEXTS, 0)
    assert silent.weight_bytes == layers + looked_up
    sampled = counter.count(QUERIES, CONTEXTS, 4)
    norm_and_head = weights.final_norm.nbytes + weights.head.nbytes
    assert sampled.weight_bytes == layers + norm_and_head + (0 if tied else looked_up)
    products = [each for layer in LAYERS for each in layer.projections(HIDDEN).values()]
    per_row = 2 * sum(each.shape.outputs * each.shape.inputs for each in products)
    assert silent.linear_flops == sum(QUERIES) * per_row
    assert sampled.linear_flops == silent.linear_flops + 4 * 2 * HIDDEN * VOCAB


def test_caches_are_written_by_their_layer_and_read_by_all() -> None:
    spec = ModelSpec("made", VOCAB, HIDDEN, LAYERS, 1e-5, 64, tie_embeddings=True)
    token = 2 * 2 * 8 * 2  # bytes of a key and a value of two heads
    read = flops = 0
    for layer in LAYERS:
        window = layer.mixer.cache.window or 64
        for rows, context in zip(QUERIES, CONTEXTS, strict=True):
            cached = set()
            for place in range(context - rows, context):
                seen = range(max(0, place - window + 1), place + 1)
                flops += len(seen) * 4 * 4 * 8
                cached.update(where for where in seen if where < context - rows)
            read += len(cached) * token
    work = WorkCounter(spec, 8, kv_itemsize=2).count(QUERIES, CONTEXTS, 4)
    assert (work.kv_read_bytes, work.attention_flops) == (read, flops)
    owners = sum(layer.mixer.cache_layer is None for layer in LAYERS)
    assert work.kv_write_bytes == sum(QUERIES) * owners * token
