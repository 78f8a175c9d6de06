"""Launches and bytes of torch compositions, counted while they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from minserve.bench.counts import launches as bench
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES, WorkCounter
from minserve.kernels import TorchOps, why_not_interpreted
from minserve.kernels.cases import cases
from minserve.kernels.counts import least
from minserve.kernels.counts.launches import LabelledOps, Launch, LaunchCounter, Total, by_operator
from minserve.kernels.counts.least import Bytes
from minserve.kernels.counts.least_ops import LeastOps, pairs
from minserve.kernels.matrix import Activation, Matrix
from minserve.loading import find_model, load_model
from minserve.models import load_spec
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.quantization.formats.dense import DenseFormat
from minserve.spec import LayerSpec, ModelSpec

LLAMA = SHAPES["llama-3.1-8b"].spec()


def counted(run) -> list[tuple[str, tuple[int, int]]]:
    with LaunchCounter("cpu") as counter, torch.inference_mode():
        run()
    return [(launch.name, tuple(launch.moved)) for launch in counter.launches]


def test_views_and_allocations_are_no_launches() -> None:
    x = torch.zeros(4, 6)
    assert counted(lambda: x.view(2, 12).t().chunk(2)[0].unsqueeze(0).expand(3, -1, -1)) == []
    assert counted(lambda: torch.empty_like(x).reshape(24)) == []
    assert counted(lambda: x.t().reshape(24)) == [("reshape", (96, 96))]


def test_an_operator_reads_its_inputs_and_writes_its_result() -> None:
    x, y = torch.zeros(4, 6), torch.zeros(4, 6)
    assert counted(lambda: x + y) == [("add", (192, 96))]
    assert counted(lambda: x.add_(y)) == [("add_", (192, 96))]
    assert counted(lambda: x.copy_(y)) == [("copy_", (96, 96))]
    assert counted(lambda: x.to(torch.float16)) == [("to", (96, 48))]
    # What is expanded is read once.
    assert counted(lambda: x * torch.zeros(6))[-1] == ("mul", (96 + 24, 96))
    assert counted(lambda: x + y[:1].expand(4, -1)) == [("add", (96 + 24, 96))]


def test_a_gather_reads_what_it_yields_and_a_scatter_writes_what_it_is_given() -> None:
    table, rows = torch.zeros(100, 8), torch.tensor([3, 4])
    assert counted(lambda: table.index_select(0, rows)) == [("index_select", (64 + 16, 64))]
    assert counted(lambda: torch.nn.functional.embedding(rows, table)) == [
        ("embedding", (64 + 16, 64))
    ]

    def put() -> None:
        table[rows] = torch.ones(2, 8)

    assert counted(put)[-1] == ("index_put_", (64 + 16, 64))


def test_filled_rows_are_written_and_attention_multiplies_twice() -> None:
    table, rows = torch.zeros(100, 8), torch.tensor([3, 4])
    assert counted(lambda: table.index_fill_(0, rows, 1.0)) == [("index_fill_", (16, 64))]
    q, k = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 5, 8)
    with LaunchCounter("cpu") as counter, torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert Total.of(counter.launches) == Total(1, Bytes(192 + 640, 192), 2 * 2 * (2 * 3 * 5 * 8))


def test_the_least_of_every_operator_by_hand() -> None:
    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight, some = tensor(5, 8), tensor(8), tensor(2, dtype=torch.int64)
    heads, angles, places = tensor(5, 8, 4), tensor(50, 4), tensor(5, dtype=torch.int64)
    k, keys, norm = tensor(5, 2, 4), tensor(9, 2, 16, 4), tensor(4)
    turned = 640 + 40 + 5 * 4 * 4
    assert {
        "linear": least.linear(x, tensor(6, 8)),
        "linear, bias": least.linear(x, tensor(6, 8), tensor(6)),
        "norm": least.rms_norm(x, weight),
        "some": least.rms_norm_rows(x, some, weight),
        "add": least.add_rms_norm(x, x, weight),
        "gate": least.silu_and_mul(x),
        "rotary": least.rotary(heads, places, angles),
        "store": least.store_kv(k, k, places),
        "both": least.rotary_store(heads, places, angles, keys, places),
        "normed": least.rotary_store(heads, places, angles, keys, places, norm, norm),
        "whole": least.split_attention(2, 4, 2, 8, 100, 1, 2),
        "split": least.split_attention(2, 4, 2, 8, 100, 3, 2),
    } == {
        "linear": (160 + 192, 120),
        "linear, bias": (160 + 192 + 24, 120),
        "norm": (160 + 32, 160),
        "some": (64 + 16 + 32, 64),
        "add": (160 + 160 + 32, 320),
        "gate": (160, 80),
        "rotary": (turned, 640),
        "store": (160 + 160 + 40, 320),
        "both": (turned + 40, 640),
        "normed": (turned + 40 + 32, 640),
        "whole": (128 + 12800, 128),
        "split": (128 + 12800 + 2 * 4 * 3 * 9 * 4, 128 + 2 * 4 * 3 * 9 * 4),
    }


def test_only_tensors_of_the_device_count() -> None:
    with LaunchCounter("meta") as counter, torch.inference_mode():
        torch.zeros(3) + 1
        here = torch.arange(3).to("meta")
        here + 1
    assert [launch.name for launch in counter.launches] == ["add"]


@pytest.mark.parametrize("name", [case.name for case in cases(device="meta")])
def test_an_operator_of_ops_is_many_of_torchs_and_one_when_fused(name: str) -> None:
    case = {case.name: case for case in cases(device="meta")}[name]
    with LaunchCounter("meta") as unfused, torch.inference_mode():
        case.run(TorchOps(use_sdpa=False))
    with LaunchCounter("meta") as fused, torch.inference_mode():
        case.run(LeastOps(fused))
    total = Total.of(fused.launches)
    assert (total.launches, total.moved) == (1, case.least)
    assert len(unfused.launches) > 1
    assert Total.of(unfused.launches).moved.total > case.least.total


@pytest.mark.parametrize(
    ("activation", "operator"), [("silu", "silu_and_mul"), ("gelu_tanh", "gelu_and_mul")]
)
def test_a_gated_product_is_counted_as_a_product_and_a_gate(
    activation: Activation, operator: str
) -> None:
    weights, x = torch.empty(12, 4, device="meta"), torch.empty(3, 4, device="meta")
    matrix = Matrix(DenseFormat(), 12, 4, torch.float32, weights)
    found = {}
    for way in ("fused", "torch"):
        counter = LaunchCounter("meta")
        ops = LeastOps(counter) if way == "fused" else LabelledOps(TorchOps(), counter)
        assert ops.packing("dense", torch.float32) is None
        product = ops.product(matrix)
        with counter, torch.inference_mode():
            assert product.apply_gated(x, activation).shape == (3, 6)
        found[way] = by_operator(counter.launches)
        assert list(found[way]) == ["linear", operator]
    moved, flops = least.linear(x, weights), 2 * 3 * 4 * 12
    assert found["fused"]["linear"] == found["torch"]["linear"] == Total(1, moved, flops)
    gated = least.silu_and_mul(torch.empty(3, 12))
    assert found["fused"][operator] == Total(1, gated, 0)
    assert found["torch"][operator].launches == 2


def test_the_counts_follow_the_blocks_of_a_model() -> None:
    """Two layers with caches of their own, one with a window, and one that reads the first's."""
    mixers = (
        AttentionSpec(4, 2, 16, softcap=50.0),
        AttentionSpec(4, 2, 16, window=8, softcap=50.0),
        AttentionSpec(4, 2, 16, cache_layer=0),
    )
    layers = tuple(
        LayerSpec(mixer, FeedForwardSpec(48, activation="gelu_tanh")) for mixer in mixers
    )
    spec = ModelSpec("gemma2", 64, 32, layers, 1e-5, 128, tie_embeddings=True)
    for way in bench.WAYS:
        found = by_operator(bench.step_launches(spec, way, [1, 5], [100, 60], "bfloat16"))
        assert {"linear", "gelu_and_mul", "rotary_store_", "attention"} <= found.keys()
        assert "silu_and_mul" not in found
    assert (found["attention"].launches, found["gelu_and_mul"].launches) == (3, 3)
    assert (found["rotary_store_"].launches, found["rotary_"].launches) == (2, 1)


@pytest.mark.parametrize(
    ("query_lens", "context_lens"), [([1], [100]), ([40], [40]), ([3, 1, 7], [3, 9, 100])]
)
def test_the_counts_agree_with_those_of_a_step(
    query_lens: list[int], context_lens: list[int]
) -> None:
    """`hardware.WorkCounter` counts from the model's description alone. What it does not count as
    read are the step's own keys and values, and the block tables."""
    mixers = AttentionSpec(4, 2, 16, softcap=50.0), AttentionSpec(4, 2, 16, window=8, softcap=2.0)
    layers = tuple(
        LayerSpec(mixer, FeedForwardSpec(48, activation="gelu_tanh")) for mixer in mixers
    )
    spec = ModelSpec("gemma2", 64, 32, layers, 1e-5, 128, tie_embeddings=True)
    found = by_operator(bench.step_launches(spec, "fused", query_lens, context_lens, "bfloat16"))
    work = WorkCounter(spec, 2).count(query_lens, context_lens, len(query_lens))
    assert found["linear"].flops == work.linear_flops
    assert found["attention"].flops == work.attention_flops
    rows = sum(query_lens)
    own, through = rows * spec.kv_bytes_per_token(2), len(layers) * rows * 2 * (4 * 16) * 2
    tables = found["attention"].moved.total - through - own - work.kv_read_bytes
    # Four bytes for each page of 1 to 16 tokens, and three numbers per request and layer.
    pages = sum(-(-context // 16) + 1 for context in context_lens)
    assert 0 < tables <= 4 * len(layers) * (pages + 3 * len(query_lens))


def test_the_least_of_windowed_attention_is_what_its_rows_see() -> None:
    q, keys = torch.empty(3, 4, 8), torch.empty(20, 2, 4, 8)
    whole = least.attention(q, keys, (3,), (40,)).read - least.attention(q, keys, (3,), (30,)).read
    assert whole == 2 * 10 * 2 * 8 * 4 + 4 * 2
    assert pairs((3,), (40,), None) == 38 + 39 + 40
    assert pairs((3,), (40,), 8) == 24
    # Three rows with a window of 8 see 10 keys, on three pages and part of another.
    windowed = least.attention(q, keys, (3,), (40,), window=8).read
    assert windowed == 3 * 4 * 8 * 4 + 2 * 10 * 2 * 8 * 4 + 4 * (3 + 3)


@pytest.mark.parametrize("rows", [1, 40])
def test_fusing_leaves_products_alone_and_removes_most_launches(rows: int) -> None:
    lens = [rows], [max(rows, 200)]
    found = {way: bench.step_launches(LLAMA, way, *lens, "bfloat16") for way in bench.WAYS}
    totals = {way: Total.of(each) for way, each in found.items()}
    assert totals["written out"].launches > totals["torch"].launches
    assert totals["torch"].launches > 4 * totals["fused"].launches
    assert totals["written out"].moved.total > totals["torch"].moved.total
    assert totals["torch"].moved.total > totals["fused"].moved.total
    products = {by_operator(each)["linear"] for each in found.values()}
    assert len(products) == 1
    assert next(iter(products)).launches == 4 * LLAMA.num_layers + 1


def test_a_step_is_modelled_by_its_launches_or_by_its_bytes() -> None:
    found = bench.step_launches(LLAMA, "fused", [1], [200], "bfloat16")
    gpu = DEVICES["H100 SXM"]
    weights = 2 * LLAMA.num_parameters() / gpu.memory_bytes_per_s
    assert weights * 0.9 < bench.modelled_s(found, gpu, "bfloat16") < weights * 1.1
    assert bench.modelled_s(found, gpu, "bfloat16", 1e-3) == len(found) * 1e-3
    with pytest.raises(ValueError, match="no sourced figure"):
        bench.modelled_s(found, DEVICES["A10G"], "bfloat16")


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(ValueError, match="written out, torch, fused"):
        bench.step_launches(LLAMA, "quickly", [1], [1], "bfloat16")


def test_bytes_cannot_be_watched_where_kernels_are_compiled() -> None:
    triton = pytest.importorskip("minserve.kernels.triton.analysis.traffic")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), triton.watch():
        pass


@pytest.mark.slow
def test_the_command_prints_every_kernel_and_interprets_by_itself() -> None:
    pytest.importorskip("triton")
    if (reason := why_not_interpreted()) is not None:
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "minserve.kernels.triton.analysis.traffic"],
        env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.keys() == {case.name for case in cases(device="meta")}
    for counts in found.values():
        assert counts["memory over least"] <= 1.1 < counts["unfused over least"] + 0.1
        assert counts["launches"] < counts["unfused launches"]


def test_the_step_command_prints_json(capsys) -> None:
    bench.main(["--model", "llama-3.1-8b", "--context", "64"])
    report = json.loads(capsys.readouterr().out)
    assert report["fused"]["launches"] < report["torch"]["launches"]
    assert report["fused"]["modelled_s"] < report["torch"]["modelled_s"]


def test_the_launches_of_a_run_are_those_that_the_engine_started() -> None:
    """Counted from the rows and contexts of its steps, and by watching it: equal operator by
    operator, in launches and bytes. What is left over is preparation and sampling."""
    config = EngineConfig(dtype="float32").with_values(
        {"kernels.backend": "torch", "trace.per_request": True}
    )
    engine = build_engine(load_model("zoo/base", config, progress=False))
    with LaunchCounter("cpu") as watched:
        drive(engine, at_once([[1] * 9, [1] * 30], [fixed_length(3), fixed_length(5)]))
    steps = engine.trace.steps
    assert len(steps) == 5 and steps[0].num_tokens == 39
    found = bench.run_launches(load_spec(find_model("zoo/base")), "torch", steps, "float32")
    did, said = _by_name(watched.launches), _by_name(found)
    also_sampling = {"add", "sub", "mul", "arange", "index", "masked_fill_", "zeros"}
    assert {"linear", "scaled_dot_product_attention", "rsqrt", "index_select"} <= said.keys()
    for name in said.keys() - also_sampling:
        assert did[name] == said[name], name
    for name in said.keys() & also_sampling:
        assert did[name].launches >= said[name].launches, name
    assert Total.of(watched.launches).moved.total < 1.001 * Total.of(found).moved.total
    assert bench.run_launches(load_spec(find_model("zoo/base")), "torch", (), "float32") == []


def _by_name(launches: list[Launch]) -> dict[str, Total]:
    names = {launch.name for launch in launches}
    return {name: Total.of(each for each in launches if each.name == name) for name in names}


def test_a_run_without_detail_cannot_be_counted() -> None:
    engine = build_engine(load_model("zoo/base", EngineConfig(dtype="float32"), progress=False))
    drive(engine, at_once([[1] * 9], [fixed_length(2)]))
    spec = load_spec(find_model("zoo/base"))
    with pytest.raises(ValueError, match=r"step 0 .* trace\.per_request"):
        bench.run_launches(spec, "fused", engine.trace.steps, "float32")
