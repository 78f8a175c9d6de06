"""Counted work against the obvious loops, the device table, ceilings and the roofline."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minserve.clock import VirtualClock
from minserve.hardware import (
    DEVICES,
    Ceilings,
    Rate,
    WorkCounter,
    best_rate,
    count_step,
    describe_machine,
    find_device,
    machine_ceilings,
    measure_ceilings,
    roofline,
)
from minserve.hardware import ceilings as ceilings_module
from minserve.hardware.ceilings import BandwidthPoint, ProductPoint
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec
from minserve.trace import StepWork

CPU = torch.device("cpu")


def model(windows: tuple[int | None, ...] = (None,), *, tied: bool = True) -> ModelSpec:
    layers = tuple(
        LayerSpec(AttentionSpec(6, 2, 4, window=window), FeedForwardSpec(40)) for window in windows
    )
    return ModelSpec("llama", 50, 24, layers, 1e-6, 512, tie_embeddings=tied)


def count_by_loops(
    spec: ModelSpec, itemsize: int, queries: list[int], contexts: list[int], logit_rows: int
) -> StepWork:
    """StepWork's definitions, row by row and matrix by matrix."""
    hidden, vocab, rows = spec.hidden_size, spec.vocab_size, sum(queries)
    if not rows:
        return StepWork()
    linear = attention = weights = read = write = activations = 0
    for layer in spec.layers:
        mixer, inner = layer.mixer, layer.feed_forward.intermediate_size
        q, kv = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        matrices = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden)]
        matrices += [(hidden, inner), (hidden, inner), (inner, hidden)]
        linear += sum(2 * rows * a * b for a, b in matrices)
        weights += (sum(a * b for a, b in matrices) + 2 * hidden) * itemsize
        inputs_and_outputs = [hidden, q, kv, kv, q, hidden, hidden, inner, inner, inner, hidden]
        residual = [hidden, hidden]
        activations += 2 * rows * sum(inputs_and_outputs + residual) * itemsize
        write += rows * 2 * kv * itemsize
        for query, context in zip(queries, contexts, strict=True):
            seen_before: set[int] = set()
            for row in range(query):
                position = context - query + row
                first = 0 if mixer.window is None else max(0, position - mixer.window + 1)
                attention += 2 * 2 * q * (position - first + 1)
                seen_before |= set(range(first, context - query))
            read += len(seen_before) * 2 * kv * itemsize
    activations += 2 * rows * hidden * itemsize
    if logit_rows:
        linear += 2 * logit_rows * hidden * vocab
        weights += (hidden * vocab + hidden) * itemsize
        activations += 2 * logit_rows * (hidden + vocab) * itemsize
    if not (logit_rows and spec.tie_embeddings):
        weights += min(rows, vocab) * hidden * itemsize
    return StepWork(linear, attention, weights, read, write, activations)


@given(
    windows=st.lists(st.sampled_from([None, 1, 3, 16]), min_size=1, max_size=3),
    tied=st.booleans(),
    itemsize=st.sampled_from([2, 4]),
    requests=st.lists(
        st.tuples(st.sampled_from([0, 1, 1, 1, 2, 5, 30]), st.integers(0, 40)), max_size=6
    ),
    logit_rows=st.integers(0, 4),
)
def test_counted_work_is_what_the_obvious_loops_count(
    windows: list[int | None],
    tied: bool,
    itemsize: int,
    requests: list[tuple[int, int]],
    logit_rows: int,
) -> None:
    spec = model(tuple(windows), tied=tied)
    queries = [query for query, _ in requests]
    contexts = [query + before for query, before in requests]
    counted = WorkCounter(spec, itemsize).count(tuple(queries), tuple(contexts), logit_rows)
    assert counted == count_by_loops(spec, itemsize, queries, contexts, logit_rows)
    assert counted == count_step(spec, itemsize, queries, contexts, logit_rows)


def test_a_smaller_cache_format_changes_only_cache_bytes() -> None:
    wide, narrow = WorkCounter(model(), 4), WorkCounter(model(), 4, kv_itemsize=1)
    a, b = wide.count((1, 3), (9, 3), 2), narrow.count((1, 3), (9, 3), 2)
    assert (a.kv_read_bytes, a.kv_write_bytes) == (4 * b.kv_read_bytes, 4 * b.kv_write_bytes)
    assert (a.flops, a.weight_bytes, a.activation_bytes) == (
        b.flops, b.weight_bytes, b.activation_bytes,
    )  # fmt: skip


def test_linear_flops_are_torchs_own_count_of_a_transformers_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True,
        attn_implementation="eager",
    )  # fmt: skip
    network, length = LlamaForCausalLM(config).eval(), 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.arange(length).unsqueeze(0), use_cache=False)
    by_operator = {
        str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()
    }
    counted = count_step(model((None, None)), 4, [length], [length], num_logit_rows=length)
    products = by_operator["aten.mm"] + by_operator.get("aten.addmm", 0)
    assert counted.linear_flops == products
    # transformers multiplies the whole square, of which a causal mask leaves (length + 1) / 2 rows'
    # worth; some versions also make the rotary angles by a product.
    square, angles = 2 * 2 * 2 * 24 * length * length, 2 * (4 // 2) * length
    assert by_operator["aten.bmm"] in (square, square + angles)
    assert counted.attention_flops == 2 * 2 * 2 * 24 * length * (length + 1) // 2


def test_weight_bytes_of_a_full_step_are_the_whole_model() -> None:
    for tied in (True, False):
        spec = model((None, 3), tied=tied)
        counted = count_step(spec, 2, [60], [60], num_logit_rows=60)
        assert counted.weight_bytes == 2 * spec.num_parameters()


def test_every_device_names_its_source_and_plausible_figures() -> None:
    assert {"T4", "L4", "H100 SXM", "H200", "B200", "MI300X", "RTX 4090"} <= set(DEVICES)
    for name, spec in DEVICES.items():
        assert spec.name == name
        assert spec.source
        assert spec.memory_bytes >= 16e9
        assert spec.memory_bytes_per_s is None or 1e11 < spec.memory_bytes_per_s < 2e13
        for dtype, rate in spec.dense_flops.items():
            assert 1e12 < rate < 1e16, (name, dtype)
        if "float16" in spec.dense_flops:
            # A data sheet's sparse figure would be at least 1.9 times the dense one next to it.
            assert spec.dense_flops["float16"] > spec.dense_flops["float32"]
        if "float8" in spec.dense_flops:
            assert spec.dense_flops["float8"] == pytest.approx(
                2 * spec.dense_flops["float16"], rel=0.01
            )


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A10G", "A10G"), ("NVIDIA A10", "A10"), ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H200", "H200"), ("h200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("AMD Instinct MI300X", "MI300X"),
    ],
)  # fmt: skip
def test_devices_are_found_by_the_drivers_name(reported: str, name: str) -> None:
    found = find_device(reported)
    assert found is not None
    assert found.name == name


def test_an_unknown_device_and_an_unsourced_figure_are_said() -> None:
    assert find_device("Voodoo 2") is None
    with pytest.raises(ValueError, match="A10G: no sourced figure"):
        DEVICES["A10G"].flops_per_s("bfloat16")


def test_machine_description_names_neither_host_nor_home() -> None:
    machine = describe_machine()
    text = json.dumps(machine.to_dict()) + str(machine)
    assert machine.cpu_model
    assert machine.cpu_cores >= 1
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert len(platform.node()) < 4 or platform.node() not in text
    assert machine.processor("cpu") == machine.cpu_model


def made_up(per_s: float = 1.0) -> Rate:
    return Rate(per_s, per_s, per_s, "made up", 3)


def ceilings() -> Ceilings:
    return Ceilings(
        processor="a CPU", device="cpu", threads=2, torch_version="2", date="2026-11-21",
        quick=True, cpu_share=0.9,
        bandwidth=(
            BandwidthPoint(1 << 20, made_up(100e9), made_up(90e9)),
            BandwidthPoint(1 << 22, made_up(60e9), made_up(50e9)),
            BandwidthPoint(1 << 26, made_up(10e9), made_up(8e9)),
        ),
        matmul=(
            ProductPoint("float32", 256, 256, made_up(100e9)),
            ProductPoint("float32", 1024, 1024, made_up(200e9)),
        ),
        matvec=(ProductPoint("float32", 1024, 1, made_up(40e9)),),
    )  # fmt: skip


def test_bandwidth_ceiling_follows_the_working_set() -> None:
    limits = ceilings()
    assert limits.bytes_per_s(1) == 100e9
    assert limits.bytes_per_s(1 << 21) == pytest.approx(80e9)
    assert limits.bytes_per_s(1 << 24) == pytest.approx(35e9)
    assert limits.bytes_per_s(1 << 40) == 10e9


def test_roofline_is_the_larger_of_compute_and_memory() -> None:
    limits = ceilings()
    memory_bound = StepWork(linear_flops=10**6, weight_bytes=1 << 26)
    bound = roofline(memory_bound, limits, "float32")
    assert bound.binds == "memory"
    assert bound.bound_s == pytest.approx((1 << 26) / 10e9)
    compute_bound = StepWork(linear_flops=10**12, weight_bytes=1 << 20)
    bound = roofline(compute_bound, limits, "float32")
    assert bound.binds == "compute"
    assert bound.bound_s == pytest.approx(10**12 / 200e9)
    on_h200 = roofline(memory_bound, DEVICES["H200"], "bfloat16")
    assert on_h200.memory_s == pytest.approx((1 << 26) / 4.8e12)
    with pytest.raises(ValueError, match=r"measure_ceilings\(dtypes=\['float16'\]\)"):
        roofline(memory_bound, limits, "float16")


def test_small_activations_are_charged_at_cache_speed() -> None:
    work = StepWork(weight_bytes=1 << 26, activation_bytes=1 << 20)
    bound = roofline(work, ceilings(), "float32")
    assert bound.memory_s == pytest.approx((1 << 26) / 10e9 + (1 << 20) / 100e9)


def test_best_rate_takes_the_fastest_operator_and_tells_its_spread() -> None:
    clock = VirtualClock()
    slow = {"rounds": 0}

    def steady() -> None:
        clock.advance(1e-3)

    def unsteady() -> None:
        slow["rounds"] += 1
        clock.advance(0.9e-3 if slow["rounds"] % 5 else 9e-3)

    rate = best_rate({"steady": steady, "unsteady": unsteady}, 1000, CPU, 0.1, clock)
    assert rate.operator == "unsteady"
    assert rate.per_s == pytest.approx(1000 / 0.9e-3)
    assert rate.low <= rate.median <= rate.per_s
    assert rate.low < rate.per_s / 2
    with pytest.raises(ValueError, match="at least one candidate"):
        best_rate({}, 1, CPU, 0.1, clock)


def test_ceilings_are_measured_for_every_size_and_read_back_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ([0.01, 0.02], [(8, 16), (4, 16)], [16])
    monkeypatch.setattr(ceilings_module, "_plan", lambda quick, on_gpu: small)
    measured = measure_ceilings(budget_s=0.0, dtypes=["float32"])
    sizes = [point.working_set_bytes for point in measured.bandwidth]
    assert sizes == [10485, 20971]
    assert [(point.rows, point.size) for point in measured.matmul] == [(8, 16), (4, 16)]
    assert measured.flops_per_s("float32") > 0
    assert Ceilings.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_ceilings_are_measured_once_per_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "new"))
    calls: list[bool] = []

    def measure(device: object, *, dtypes: object, quick: bool) -> Ceilings:
        calls.append(quick)
        return ceilings()

    monkeypatch.setattr(ceilings_module, "measure_ceilings", measure)
    assert machine_ceilings() == ceilings()
    assert machine_ceilings() == ceilings()
    assert calls == [True]
    machine_ceilings(quick=False)
    machine_ceilings(refresh=True)
    assert calls == [True, False, True]
    machine_ceilings(dtypes=["float32"])
    assert len(calls) == 4
    for path in (tmp_path / "new").iterdir():
        assert path.suffix == ".json"
        path.write_text("{")
    machine_ceilings()
    assert len(calls) == 5
    # A place that cannot be written costs only the repetition.
    monkeypatch.setenv("MINSERVE_CACHE_DIR", os.devnull)
    assert machine_ceilings() == ceilings()


def test_a_disturbed_measurement_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    noisy = Rate(per_s=5e9, median=1e9, low=1e8, operator="made up", rounds=3)
    points = tuple(BandwidthPoint(1 << size, noisy, noisy) for size in (20, 22, 24))
    assert replace(ceilings(), bandwidth=points).disturbed
    disturbed = replace(ceilings(), cpu_share=0.4)
    assert disturbed.disturbed
    assert not ceilings().disturbed
    monkeypatch.setattr(ceilings_module, "measure_ceilings", lambda *_, **__: disturbed)
    assert machine_ceilings() == disturbed
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_ceilings_of_a_gpu_are_below_its_data_sheet() -> None:
    measured = measure_ceilings("cuda", dtypes=["bfloat16"])
    spec = find_device(measured.processor)
    assert measured.bytes_per_s(1 << 30) > 1e10
    if spec is not None and spec.memory_bytes_per_s is not None:
        assert measured.bytes_per_s(1 << 40) < 1.02 * spec.memory_bytes_per_s
        assert measured.flops_per_s("bfloat16") < 1.02 * spec.flops_per_s("bfloat16")
