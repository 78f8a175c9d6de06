"""INT8 per output: rounding, bytes, and an engine that holds and counts what it stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.build import build_engine
from minserve.config import EngineConfig, describe
from minserve.hardware import WorkCounter
from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.matrix import PackedShape
from minserve.kernels.reference import DenseProduct
from minserve.layers import Linear
from minserve.loading import LoadedModel, find_model, load_model
from minserve.models import DecoderWeights, load_spec
from minserve.models.store import WeightStore
from minserve.quantization.formats import DENSE, FORMATS, FormatPlan, load_matrix
from minserve.quantization.formats.int8 import round_to_nearest
from minserve.request import SamplingParams
from minserve.spec import LinearShape

INT8 = FORMATS["int8"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def test_the_switch_names_every_format() -> None:
    (knob,) = (each for each in describe() if each.path == "quantization.weight_format")
    assert set(knob.choices) == FORMATS.keys()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(0, 999),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e6]), st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_codes_are_the_nearest(outputs, inputs, seed, size, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(outputs, inputs, generator=generator) * size).to(dtype)
    codes, scales = round_to_nearest(weight)
    assert codes.dtype == torch.int8 and scales.dtype == torch.float32
    assert torch.equal(codes.abs().amax(1), torch.full((outputs,), 127, dtype=torch.int8))
    error = (codes.double() * scales.double()[:, None] - weight.double()).abs()
    assert (error <= 0.50001 * scales.double()[:, None]).all()


def test_outputs_of_zeros_stay_zeros():
    codes, scales = round_to_nearest(torch.zeros(2, 3))
    assert not codes.any() and torch.equal(scales, torch.ones(2))


def test_weights_that_are_not_numbers_are_not_hidden():
    """The maximum of a row with NaN is NaN, and so is all that is computed from it."""
    weight = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    _, scales = round_to_nearest(weight)
    assert scales[0].isnan() and not scales[1].isnan()


class Source:
    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def read(self, suffix: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self.weight if suffix == "weight" else torch.arange(shape[0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_products_multiply_the_numbers_that_codes_stand_for(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(70, 33), torch.randn(5, 33, dtype=torch.float64)
    shape = LinearShape(33, (70,), bias=True)
    matrix = load_matrix(INT8, shape, [Source(weight)], dtype, torch.device("cpu"))
    codes, scales = round_to_nearest(weight)
    numbers = codes.double() * scales.double()[:, None]
    exact = x.to(dtype).double() @ numbers.T + torch.arange(70)
    limit = {torch.float32: 1e-4, torch.float64: 1e-12}.get(dtype, 0.6)
    fallback = Linear(matrix, TorchOps())
    assert isinstance(fallback.product, DenseProduct) and fallback.product.matrix.kind == "int8"
    assert (fallback.apply(None, x.to(dtype)).double() - exact).abs().max() < limit
    if why_not_native() is None:
        ops = native_ops()
        packed = Linear(matrix.packed(ops.packing("int8", dtype)), ops)
        assert not isinstance(packed.product, DenseProduct)
        assert (packed.apply(None, x.to(dtype)).double() - exact).abs().max() < limit


def loaded(backend: str, dtype: str = "float32", **values: object) -> LoadedModel:
    config = EngineConfig(device="cpu", dtype=dtype).with_values(
        {"kernels.backend": backend, "quantization.weight_format": "int8", **values}
    )
    return load_model("zoo/draft", config, progress=False)


BACKENDS = ["torch", *(["native"] if why_not_native() is None else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counted_bytes_are_held_bytes(backend, dtype):
    model = loaded(backend, dtype)
    config = model.config
    parts = config.model.weight_parts(config.itemsize, config.storage)
    assert held_by_part(model.weights, config.model.tie_embeddings) == parts
    assert model.weights.nbytes == sum(parts.values())
    counter = WorkCounter(config.model, config.itemsize, storage=config.storage)
    # A step of one row with logits reads all of a tied model.
    assert counter.count((1,), (5,), 1).weight_bytes == model.weights.nbytes
    dense = config.model.weight_parts(config.itemsize)
    assert parts["head"] == dense["head"] and parts["norms"] == dense["norms"]
    itemsize = config.itemsize
    for part in ("mixers", "feed_forwards"):
        # A byte per weight, four for each output: of 160 inputs or more.
        assert 1 / itemsize < parts[part] / dense[part] < (1 + 4 / 100) / itemsize


def held_by_part(weights: DecoderWeights, tied: bool) -> dict[str, int]:
    """By the tensors themselves."""

    def size(*matrices) -> int:
        tensors = [t for m in matrices for t in (m.codes, m.scales, m.zeros, m.bias)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    layers = weights.layers
    norms = [weights.final_norm, *(n for x in layers for n in (x.input_norm, x.post_norm))]
    heads = [n for x in layers for n in (x.mixer.q_norm, x.mixer.k_norm) if n is not None]
    return {
        "mixers": sum(size(x.mixer.qkv, x.mixer.output) for x in layers)
        + sum(n.weight.nbytes for n in heads),
        "feed_forwards": sum(size(x.feed_forward.gate_up, x.feed_forward.down) for x in layers),
        "norms": sum(n.weight.nbytes for n in norms),
        "embedding": 0 if tied else size(weights.embedding.table),
        "head": size(weights.head),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_trace_of_an_engine_counts_what_is_stored(backend):
    model = loaded(backend)
    engine = build_engine(model)
    engine.add("one", [5, 6, 7], GREEDY)
    steps = [engine.step() for _ in range(3)]
    assert steps[-1].num_scheduled == 1
    assert steps[-1].work.weight_bytes == model.weights.nbytes


def test_engines_share_weights_of_one_format_only():
    first, same = loaded("torch"), loaded("torch")
    other = load_model("zoo/draft", EngineConfig(device="cpu", dtype="float32"), progress=False)
    assert first.weights is same.weights and first.weights is not other.weights
    mixed = FormatPlan(layers=INT8, exceptions={(0, "qkv"): DENSE})
    config = EngineConfig(device="cpu", dtype="float32").with_values({"kernels.backend": "torch"})
    third = load_model("zoo/draft", config, progress=False, formats=mixed)
    assert third.weights is not first.weights
    assert third.weights.layers[0].mixer.qkv.kind == "dense"
    assert third.weights.layers[1].mixer.qkv.kind == "int8"
    assert third.weights.nbytes == sum(third.config.model.weight_parts(4, mixed).values())


@pytest.mark.parametrize(
    "plan", [FormatPlan(INT8), FormatPlan(head=INT8), FormatPlan(exceptions={(1, "down"): INT8})]
)
def test_weights_are_not_shared_by_operators_that_pack_another_way(plan):
    """Only matrices of one kind differ, wherever the plan has it."""
    path, store = find_model("zoo/draft"), WeightStore()
    spec = load_spec(path)

    def load(shape: PackedShape | None) -> DecoderWeights:
        def packing(kind: str, dtype: torch.dtype) -> PackedShape | None:
            return shape if kind == "int8" else None

        return store.load(path, spec, torch.float32, "cpu", False, plan, packing)

    plain, panels, wider, same = map(load, (None, PackedShape(16), PackedShape(32), None))
    assert plain is same and len({id(plain), id(panels), id(wider)}) == len(store) == 3
    assert panels.nbytes >= plain.nbytes


def test_int8_changes_little_and_something():
    """The tokens of a real model stay close to those of its own number format."""
    plain = load_model("zoo/draft", EngineConfig(device="cpu", dtype="float32"), progress=False)
    texts = []
    for model in (plain, loaded("torch")):
        engine = build_engine(model)
        (request,) = engine.add("one", model.encode("def mean(values):\n    "), GREEDY)
        while engine.has_work:
            engine.step()
        texts.append(list(request.output_token_ids))
    assert texts[0][:4] == texts[1][:4]
    matrices = [model.weights.layers[0].mixer.qkv for model in (plain, loaded("torch"))]
    ours, theirs = (matrix.dequantised() for matrix in matrices)
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).norm() / ours.norm() < 0.01


def test_a_damaged_checkpoint_is_refused_before_it_is_rounded(tmp_path: Path):
    from minserve.models import ModelError

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        load_model(tmp_path, EngineConfig().with_values({"quantization.weight_format": "int8"}))
