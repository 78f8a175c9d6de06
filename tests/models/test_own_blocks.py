"""Blocks defined in a test file run through everything, without a change in `minserve/`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lossless.windowed import ask, outputs, prompt, run
from models.own_blocks import (
    MixtureSpec,
    TemperedSpec,
    multiply,
    own_attention,
    own_logits,
)

from minserve.build import build_engine, build_virtual_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig, Facts, resolve
from minserve.engine import Engine
from minserve.hardware import DEVICES, WorkCounter
from minserve.kernels import TorchOps, select_ops
from minserve.loading import LoadedModel
from minserve.models import DecoderWeights, random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.quantization.formats import DENSE_PLAN, FORMATS, FormatPlan
from minserve.request import SamplingParams
from minserve.spec import LayerSpec, ModelSpec
from minserve.virtual import CostModel

HIDDEN, VOCAB, LONGEST, EXPERTS = 32, 97, 256, 5
OWN = LayerSpec(TemperedSpec(4, 2, 8), MixtureSpec(48, EXPERTS))
SPEC = ModelSpec("own", VOCAB, HIDDEN, (OWN,) * 3, 1e-5, LONGEST, tie_embeddings=False)
LENGTHS = (100, 7, 61, 70)


def weights_of(spec: ModelSpec, plan: FormatPlan = DENSE_PLAN) -> DecoderWeights:
    """Random, and large enough that neither attention nor the choice of experts is uniform."""
    weights = random_weights(spec, torch.float64, seed=3, plan=plan)
    for layer in weights.layers:
        mixer, moe = layer.mixer, layer.feed_forward
        for matrix in (mixer.query, mixer.key_value, mixer.output, moe.router, *moe.up, *moe.down):
            (matrix.codes if matrix.scales is None else matrix.scales).mul_(8.0)
    return weights


def engine_over(weights: DecoderWeights, plan: FormatPlan = DENSE_PLAN, **values) -> Engine:
    settings = {
        "dtype": "float64",
        "device": "cpu",
        "kernels.backend": "torch",
        "memory.block_size": 8,
        "memory.check_integrity": True,
        "scheduling.max_num_batched_tokens": 24,
        "scheduling.max_num_seqs": 3,
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    config = resolve(EngineConfig().with_values(settings), SPEC, facts=Facts(storage=plan))
    return build_engine(LoadedModel("own", Path(), config, None, {}, weights), VirtualClock())


def served(engine: Engine) -> list[list[int]]:
    requests = ask(engine, [prompt(n, length) for n, length in enumerate(LENGTHS)], 25)
    run(engine)
    return outputs(requests)


PAGE_BYTES = 8 * SPEC.kv_bytes_per_token(8)
VARIANTS = {
    "chunks": {},
    "prefix cache": {"memory__prefix_cache": "hash"},
    "preemption": {"memory__kv_bytes": 18 * PAGE_BYTES, "memory__watermark": 0.0},
    "swap": {
        "memory__kv_bytes": 18 * PAGE_BYTES,
        "memory__watermark": 0.0,
        "scheduling__preemption": "swap",
        "memory__host_bytes": 18 * PAGE_BYTES,
    },
    "no cache": {"memory__kv_cache": False, "scheduling__max_num_batched_tokens": 1024},
    "padding": {"kernels__padding": "power_of_two"},
    "overlap": {"scheduling__async_scheduling": True},
    "graphs": {"kernels__cuda_graphs": True},
    "native": {"kernels__backend": "auto"},
}


@pytest.mark.parametrize("plan", [DENSE_PLAN, FormatPlan(FORMATS["int8"])], ids=["dense", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_those_of_whole_sequences(name: str, plan: FormatPlan) -> None:
    weights = weights_of(SPEC, plan)
    engine = engine_over(weights, plan, **VARIANTS[name])
    found = served(engine)
    for number, (length, tokens) in enumerate(zip(LENGTHS, found, strict=True)):
        text = prompt(number, length)
        choices = own_logits(SPEC, weights, text + tokens).argmax(-1).tolist()
        assert tokens == choices[length - 1 : -1]
        assert len(set(tokens)) > 3
    totals = engine.trace.totals
    if name in ("preemption", "swap"):
        assert totals.preemptions > 0
    if name == "prefix cache":
        assert served(engine) == found and engine.trace.totals.hit_tokens > 100


def test_parameters_and_bytes_are_those_of_the_weights() -> None:
    for plan in (DENSE_PLAN, FormatPlan(FORMATS["int8"])):
        weights = weights_of(SPEC, plan)
        assert weights.nbytes == sum(SPEC.weight_parts(8, plan).values())
    assert SPEC.num_parameters() * 8 == weights_of(SPEC).nbytes
    assert SPEC.kv_bytes_per_token(8) == 3 * 2 * 2 * 8 * 8


@pytest.mark.parametrize("plan", [DENSE_PLAN, FormatPlan(FORMATS["int8"])], ids=["dense", "int8"])
def test_the_trace_counts_the_experts_that_were_used(plan: FormatPlan) -> None:
    weights = weights_of(SPEC, plan)
    engine = engine_over(weights, plan)
    engine.add("one", prompt(0, 20), SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    whole = engine.step()
    one = engine.step()
    parts = SPEC.weight_parts(8, plan)
    experts = [layer.feed_forward for layer in weights.layers]
    expert = sum(moe.up[0].nbytes + moe.down[0].nbytes for moe in experts) / len(experts)
    fixed = sum(parts.values()) - 3 * EXPERTS * expert - parts["embedding"]
    row = HIDDEN * 8
    # One row uses one expert per layer; twenty may use any number.
    assert one.work.weight_bytes == fixed + 3 * expert + row
    used = (whole.work.weight_bytes - fixed - 20 * row) / expert
    assert used == int(used) and 3 < used <= 3 * EXPERTS
    assert used >= len(_experts(weights, prompt(0, 20))) + 2
    linear = [each.work.linear_flops for each in (whole, one)]
    head = 2 * HIDDEN * VOCAB
    assert (linear[0] - head) == 20 * (linear[1] - head)


def test_steps_from_graphs_count_their_own_experts() -> None:
    """Two requests, so that no row is padding: each step has a count of its own."""
    works = []
    for graphs in (False, True):
        engine = engine_over(weights_of(SPEC), kernels__cuda_graphs=graphs)
        ask(engine, [prompt(n, 9) for n in range(2)], 20)
        run(engine)
        assert engine.trace.totals.steps == 20
        works.append([step.work.weight_bytes for step in engine.trace.steps])
    assert works[0] == works[1]
    assert len(set(works[0][1:])) > 2, "the number of experts never differs"


def _experts(weights: DecoderWeights, tokens: list[int]) -> set[int]:
    """The experts of the first layer, computed apart."""
    ops, stored = TorchOps(), weights.layers[0]
    h = weights.embedding.apply(torch.tensor(tokens))
    hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    h = h + own_attention(OWN, stored.mixer, stored.input_norm.apply(ops, h), hidden)
    router = multiply(stored.feed_forward.router, stored.post_norm.apply(ops, h))
    return set(router.argmax(-1).tolist())


def test_uncounted_experts_are_expected_ones() -> None:
    counter = WorkCounter(SPEC, 8)
    expert = 2 * 48 * HIDDEN * 8
    one, many = (counter.count((n,), (n,), 0).weight_bytes for n in (1, 10_000))
    # The embedding's rows: one token, or as many as there are.
    assert round(many - one) == 3 * (EXPERTS - 1) * expert + (VOCAB - 1) * HIDDEN * 8
    two = counter.count((2,), (2,), 0).weight_bytes
    expected = 3 * (1 - 1 / EXPERTS) * expert + HIDDEN * 8
    assert abs(two - one - expected) <= 1
    given = {(layer, name): 2 for layer in range(3) for name in ("up", "down")}
    counted = counter.count((2,), (2,), 0, given).weight_bytes
    assert counted - one == 3 * expert + HIDDEN * 8
    # A block may find that no row needs any.
    none = counter.count((2,), (2,), 0, dict.fromkeys(given, 0)).weight_bytes
    assert counted - none == 3 * 2 * expert


def test_prompt_rows_that_are_scored_are_rows_of_logits() -> None:
    engine = engine_over(weights_of(SPEC))
    ask(engine, [prompt(0, 9)], 2)
    ask(engine, [prompt(1, 9)], 2, prompt_logprobs=1)
    step = engine.step()
    assert step.work.linear_flops == WorkCounter(SPEC, 8).count((9, 9), (9, 9), 10).linear_flops


def test_each_row_multiplies_with_the_experts_it_uses() -> None:
    matrices = HIDDEN * 32 + HIDDEN * (16 + 16) + 32 * HIDDEN + HIDDEN * EXPERTS
    expert = 2 * HIDDEN * 48
    counter = WorkCounter(SPEC, 8)
    assert counter.count((7,), (7,), 0).linear_flops == 7 * 3 * 2 * (matrices + expert)


def test_the_virtual_clock_charges_for_what_is_stored() -> None:
    cost = CostModel(DEVICES["A100 80GB SXM"], overhead_s=0.0)
    seconds = {}
    for name in FORMATS:
        values = {
            "quantization.weight_format": name,
            "scheduling.max_num_seqs": 3,
            "memory.kv_bytes": 1 << 20,
        }
        engine = build_virtual_engine(SPEC, EngineConfig().with_values(values), cost)
        params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
        for number, length in enumerate(LENGTHS):
            engine.add(f"r{number}", prompt(number, length), params)
        while engine.has_work:
            engine.step()
        assert engine.trace.totals.finished_requests == len(LENGTHS)
        seconds[name] = engine.clock.now()
    assert 0.4 < seconds["int8"] / seconds["dense"] < 0.9


def test_a_layer_of_ones_own_between_others_runs_beside_the_fast_part() -> None:
    """Layers around it run in one call, and tokens are those of the layers one by one."""
    usual = LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(48))
    spec = ModelSpec(
        "own", VOCAB, HIDDEN, (usual, usual, OWN, usual), 1e-5, LONGEST, tie_embeddings=False
    )
    ops = select_ops("auto", torch.device("cpu"), torch.float64)
    found = []
    for backend in ("torch", "auto"):
        own = ops if backend == "auto" else TorchOps()
        weights = random_weights(spec, torch.float64, seed=3, packing=own.packing)
        values = {
            "dtype": "float64", "device": "cpu", "kernels.backend": backend,
            "scheduling.max_num_batched_tokens": 24, "scheduling.max_num_seqs": 3,
            "memory.block_size": 8,
        }  # fmt: skip
        config = resolve(EngineConfig().with_values(values), spec)
        loaded = LoadedModel("own", Path(), config, None, {}, weights)
        engine = build_engine(loaded, VirtualClock())
        found.append(served(engine))
        if backend == "auto" and ops.name == "native":
            decoder = vars(engine)["_runner"]._decoder
            assert decoder._segments == ((0, 2, True), (2, 3, False), (3, 4, True))
            assert not decoder.runs_in_one_call
    assert found[0] == found[1]


def test_a_block_that_only_counts_says_what_is_missing() -> None:
    class Counting:
        projections = vector_parameters = None

    spec = ModelSpec("own", VOCAB, HIDDEN, (LayerSpec(OWN.mixer, Counting()),), 1e-5, 9, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Counting describes a block without load and bind"):
        random_weights(spec, torch.float32)


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scores_that_no_operator_could_compute_are_refused(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"AttentionSpec\({name}={value}\): expected a number above 0"
    ):
        AttentionSpec(4, 2, 8, **{name: value})
