"""A weight format defined in this file alone runs through everything, without a change elsewhere.

Four bits in groups of eight inputs, two codes per byte, with a scale and a zero point each: unlike
any format that `minserve` has, so that nothing can have been made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from minserve.build import build_engine, build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES, WorkCounter
from minserve.kernels import why_not_native
from minserve.kernels.matrix import Matrix
from minserve.loading import LoadedModel, load_model
from minserve.models import DecoderWeights
from minserve.quantization.formats import (
    DENSE,
    FORMATS,
    FormatPlan,
    ShardDim,
    TensorSource,
    load_matrix,
    shard_matrix,
)
from minserve.request import SamplingParams
from minserve.spec import LinearShape
from minserve.virtual import CostModel

GROUP = 8


@dataclass(frozen=True)
class NibbleFormat:
    """`weight = (code - zero) * scale`, codes from 0 to 15."""

    name: ClassVar[str] = "nibble"
    kind: ClassVar[str] = "nibble"

    def matrix_bytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        return outputs * inputs // 2 + outputs * inputs // GROUP * (4 + 1)

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Matrix:
        parts = zip(shape.parts, sources, strict=True)
        whole = torch.cat([source.read("weight", (n, shape.inputs)) for n, source in parts])
        groups = whole.float().to(device).unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = (high - low).clamp(min=1e-9) / 15
        zeros = (-low / scales).round().to(torch.uint8)
        codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
        flat = codes.to(torch.uint8).flatten(1)
        packed = flat[:, ::2] | flat[:, 1::2] << 4
        return Matrix(self, shape.outputs, shape.inputs, dtype, packed, scales, zeros, group=GROUP)

    def dequantise(self, matrix: Matrix) -> Tensor:
        every = torch.arange(matrix.outputs, device=matrix.device)
        return self.rows(matrix, matrix.codes, every)

    def rows(self, matrix: Matrix, codes: Tensor, indices: Tensor) -> Tensor:
        assert matrix.scales is not None and matrix.zeros is not None
        both = torch.stack((codes & 15, codes >> 4), -1).flatten(1).unflatten(1, (-1, GROUP))
        scales, zeros = matrix.scales[indices][..., None], matrix.zeros[indices][..., None]
        return ((both.to(torch.int16) - zeros) * scales).flatten(1).to(matrix.dtype)

    def shard(
        self, matrix: Matrix, shape: LinearShape, rank: int, world: int, dim: ShardDim
    ) -> Matrix:
        assert matrix.scales is not None and matrix.zeros is not None

        def cut(tensor: Tensor) -> Tensor:
            if dim == "input":
                return tensor.chunk(world, 1)[rank].clone()
            pieces = tensor.split_with_sizes(shape.parts)
            return torch.cat([piece.chunk(world)[rank] for piece in pieces])

        codes = cut(matrix.codes)
        outputs, inputs = codes.shape[0], codes.shape[1] * 2
        scales, zeros = cut(matrix.scales), cut(matrix.zeros)
        return Matrix(self, outputs, inputs, matrix.dtype, codes, scales, zeros, group=GROUP)


NIBBLE = NibbleFormat()
PLAN = FormatPlan(layers=NIBBLE)
BACKENDS = ["torch", *(["native"] if why_not_native() is None else [])]


def load(
    plan: FormatPlan, backend: str = "torch", model: str = "zoo/draft", **values: object
) -> LoadedModel:
    settings = {"kernels.backend": backend, "device": "cpu", "dtype": "float64"}
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    config = EngineConfig().with_values(settings)
    return load_model(model, config, progress=False, formats=plan)


def texts(model: LoadedModel) -> tuple[list[list[int]], int, int]:
    """Tokens of some requests, and the preemptions and hit tokens on the way."""
    engine = build_engine(model)
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    prompts = ["def mean(values):\n    ", "import os\n\n\ndef walk(", "class Tree:\n" * 9]
    found = []
    for wave in range(2):
        requests = []
        for number, text in enumerate(prompts):
            requests += engine.add(f"{wave}.{number}", model.encode(text), params)
        while engine.has_work:
            engine.step()
            engine.audit()
        found += [list(request.output_token_ids) for request in requests]
    totals = engine.trace.totals
    return found, totals.preemptions, totals.hit_tokens


def dequantised(weights: DecoderWeights) -> None:
    """Replace every matrix of the format by a dense one of the numbers that it stands for."""
    for layer in weights.layers:
        for block, names in (
            (layer.mixer, ("qkv", "output")),
            (layer.feed_forward, ("gate_up", "down")),
        ):
            for name in names:
                old = getattr(block, name)
                numbers = old.dequantised().t().contiguous().t()  # as dense weights lie
                new = Matrix(DENSE, old.outputs, old.inputs, old.dtype, numbers, bias=old.bias)
                object.__setattr__(block, name, new)


TIGHT = {
    "memory__kv_bytes": 10 * 16 * 2048, "memory__prefix_cache": "hash", "memory__watermark": 0.0,
    "memory__check_integrity": True, "scheduling__max_num_batched_tokens": 24,
    "scheduling__max_num_seqs": 3, "scheduling__max_model_len": 160,
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_are_those_of_the_numbers_that_it_stands_for(backend: str) -> None:
    ours = load(PLAN, backend)
    plain = load(FormatPlan(layers=NIBBLE, exceptions={(0, "qkv"): NIBBLE}))
    dequantised(plain.weights)
    expected, _, _ = texts(plain)
    assert texts(ours)[0] == expected
    dense, _, _ = texts(load(FormatPlan()))
    assert dense != expected, "four bits change nothing: is the format used?"


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_chunks_preemption_and_prefix_hits_change_no_token(backend: str) -> None:
    free, _, _ = texts(load(PLAN, backend))
    tight, preemptions, hits = texts(load(PLAN, backend, **TIGHT))
    assert tight == free
    assert preemptions > 0 and hits > 0


def test_counted_bytes_are_held_bytes() -> None:
    model = load(PLAN)
    spec = model.config.model
    assert sum(spec.weight_parts(8, PLAN).values()) == model.weights.nbytes
    counted = WorkCounter(spec, 8, storage=PLAN).count((1,), (3,), 1).weight_bytes
    assert spec.tie_embeddings and counted == model.weights.nbytes
    assert model.config.storage == PLAN
    assert any("the caller's own formats" in note for note in build_engine(model).config.notes)


def test_the_virtual_clock_charges_for_it() -> None:
    cost = CostModel(DEVICES["A100 80GB SXM"], dtype="float32", overhead_s=0.0)
    spec = load(PLAN).config.model
    read, seconds = [], []
    for plan in (FormatPlan(), PLAN):
        values = {"memory.kv_bytes": 1 << 20, "scheduling.max_num_seqs": 4}
        config = EngineConfig().with_values(values)
        engine = build_virtual_engine(spec, config, cost, formats=plan)
        engine.add("one", [5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True))
        steps = []
        while engine.has_work:
            steps.append(engine.step())
        read.append(steps[-1].work.weight_bytes)
        seconds.append(engine.clock.now())
    assert read == [sum(spec.weight_parts(4, plan).values()) for plan in (FormatPlan(), PLAN)]
    # Little else is read in such short steps.
    assert seconds[1] / seconds[0] == pytest.approx(read[1] / read[0], rel=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_formats_may_be_mixed_by_layer_and_projection(backend: str) -> None:
    """What the operators multiply themselves keeps running in one call beside what they do not."""
    plan = FormatPlan(layers=DENSE, exceptions={(1, "down"): NIBBLE, (2, "qkv"): FORMATS["int8"]})
    model = load(plan, backend, "zoo/base")
    kinds = [[x.mixer.qkv.kind, x.feed_forward.down.kind] for x in model.weights.layers]
    assert kinds[:3] == [["dense", "dense"], ["dense", "nibble"], ["int8", "dense"]]
    engine = build_engine(model)
    decoder = vars(engine)["_runner"]._decoder
    last = len(kinds)
    whole = ((0, last, False),)
    cut = ((0, 1, True), (1, 2, False), (2, last, True))
    assert decoder._segments == (cut if backend == "native" else whole)
    assert texts(model)[0] == texts(load(plan, "torch", "zoo/base"))[0]
    assert model.weights.nbytes == sum(model.config.model.weight_parts(8, plan).values())


@pytest.mark.parametrize("dim", ["output", "input"])
def test_its_shards_are_parts_of_the_whole(dim: ShardDim) -> None:
    class Drawn:
        def read(self, suffix: str, shape: tuple[int, ...]) -> Tensor:
            return torch.linspace(-1, 1, shape[0] * shape[-1]).view(shape)

    shape = LinearShape(32, (8, 4, 4))
    cpu = torch.device("cpu")
    whole = load_matrix(NIBBLE, shape, [Drawn()] * 3, torch.float32, cpu)
    shards = [shard_matrix(NIBBLE, whole, shape, rank, 2, dim) for rank in range(2)]
    numbers = whole.dequantised()
    for rank, shard in enumerate(shards):
        if dim == "input":
            expected = numbers.chunk(2, 1)[rank]
        else:
            expected = torch.cat([p.chunk(2)[rank] for p in numbers.split_with_sizes([8, 4, 4])])
        assert torch.equal(shard.dequantised(), expected)
