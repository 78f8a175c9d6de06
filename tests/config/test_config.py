"""Fields are documented, values checked, combinations resolved or refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minserve.config import (
    ConfigError,
    EngineConfig,
    MemoryConfig,
    SchedulingConfig,
    describe,
)
from minserve.config import resolve as resolve_module
from minserve.kernels import TorchOps, TritonUnavailable, select_ops
from minserve.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, RopeSpec

MODEL = ModelSpec(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    layers=(LayerSpec(AttentionSpec(4, 2, 16), FeedForwardSpec(128)),) * 3,
    norm_eps=1e-5,
    rope=RopeSpec(),
    max_position=1024,
    tie_embeddings=True,
    dtype="bfloat16",
)


def with_values(**values: object) -> EngineConfig:
    return EngineConfig().with_values({path.replace("__", "."): v for path, v in values.items()})


def test_every_field_is_documented_and_its_flag_is_its_own():
    knobs = describe()
    assert len({knob.flag for knob in knobs}) == len(knobs)
    for knob in knobs:
        assert knob.doc.endswith("."), knob.path
        assert knob.trade_off, knob.path
        assert knob.type in (int, float, bool, str), knob.path


def test_dotted_paths_reach_every_field():
    config = EngineConfig()
    for knob in describe():
        assert config.get(knob.path) == knob.default
        assert config.with_values({knob.path: knob.default}) == config


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no field 'memory.block_sise'; did you mean 'memory.bl"):
        EngineConfig().with_values({"memory.block_sise": 8})
    with pytest.raises(TypeError):
        MemoryConfig(block_sise=8)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("memory.block_size", 0, "MemoryConfig.block_size=0: expected an integer from 1"),
        ("memory.block_size", "16", "expected an integer from 1 to 1024"),
        ("memory.kv_cache", 1, "expected True or False"),
        ("memory.watermark", 0.9, "at most 0.5"),
        ("scheduling.max_num_seqs", -1, "expected an integer from 1"),
        ("scheduling.victim", "first", "expected one of last, least_computed"),
        ("dtype", "int8", "expected one of auto, float64"),
        ("memory", SchedulingConfig(), "expected MemoryConfig"),
    ],
)
def test_a_value_out_of_bounds_is_refused(path, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        if path == "memory":
            EngineConfig(memory=value)
        else:
            EngineConfig().with_values({path: value})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scheduling__max_model_len": 2048}, "max_model_len=2048 is beyond the 1024 positions"),
        ({"scheduling__max_num_batched_tokens": 8}, "max_num_batched_tokens=8 is below scheduling"),
        (
            {"memory__kv_cache": False, "scheduling__max_num_batched_tokens": 512},
            "memory.kv_cache=False needs a request's tokens in one step",
        ),
        (
            {"scheduling__enable_chunked_prefill": False,
             "scheduling__max_num_batched_tokens": 512},
            "scheduling.enable_chunked_prefill=False needs a request's tokens in one step",
        ),
        ({"memory__kv_bytes": 100}, "memory.kv_bytes=100 holds no page"),
        ({"device": "tpu"}, "device='tpu': expected auto, cpu, cuda"),
    ],
)  # fmt: skip
def test_an_impossible_combination_is_refused_with_a_way_out(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(with_values(), **{}).with_values(
            {"device": "cpu", **{path.replace("__", "."): v for path, v in values.items()}}
        ).resolve(MODEL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_cuda_without_cuda_says_what_to_do():
    with pytest.raises(ConfigError, match="sees no CUDA device; use device='cpu'"):
        with_values(device="cuda").resolve(MODEL)


def test_resolve_leaves_nothing_to_guess():
    resolved = with_values(device="cpu", dtype="float32").resolve(MODEL)
    assert resolved.dtype is torch.float32
    assert resolved.max_model_len == 1024
    assert resolved.max_num_batched_tokens == 512
    assert resolved.config.memory.kv_bytes is not None
    assert resolved.config.scheduling.max_model_len == 1024
    assert resolved.block_bytes == 16 * 3 * 2 * 2 * 16 * 4
    again = resolved.config.resolve(MODEL)
    assert again.config == resolved.config


def test_the_budget_grows_where_a_request_must_fit_in_one_step():
    resolved = with_values(device="cpu", memory__kv_cache=False).resolve(MODEL)
    assert resolved.max_num_batched_tokens == 1024
    assert any("max_num_batched_tokens: 1024" in note for note in resolved.notes)


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_on_a_cpu_depends_on_its_instructions(monkeypatch, has_bfloat16, dtype):
    monkeypatch.setattr(resolve_module, "cpu_has_bfloat16", lambda: has_bfloat16)
    resolved = with_values(device="cpu").resolve(MODEL)
    assert resolved.config.dtype == dtype
    assert any(note.startswith(f"dtype: {dtype}") for note in resolved.notes)


@pytest.mark.parametrize(("capability", "old"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_below_8_0_runs_torch_operators_in_float16_and_says_so(monkeypatch, capability, old):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    resolved = with_values(device="cuda", memory__kv_bytes=1 << 24).resolve(MODEL)
    assert resolved.dtype is (torch.float16 if old else torch.bfloat16)
    said = [note for note in resolved.notes if note.startswith("kernels.backend: torch, because")]
    assert len(said) == old
    asked = with_values(device="cuda", memory__kv_bytes=1 << 24, kernels__backend="triton")
    if old:
        assert "compute capability 7.5, and below 8.0" in said[0]
        assert isinstance(select_ops("auto", resolved.device, resolved.dtype), TorchOps)
        with pytest.raises(TritonUnavailable, match="without matrix units"):
            select_ops("triton", resolved.device, resolved.dtype)
        with pytest.raises(ConfigError, match=r"backend='triton' and device='cuda': .*7\.5"):
            asked.resolve(MODEL)
    else:
        assert asked.resolve(MODEL).config.kernels.backend == "triton"


def test_auto_dtype_never_is_float16_on_a_cpu():
    resolved = with_values(device="cpu").resolve(replace(MODEL, dtype="float16"))
    assert resolved.dtype is torch.float32


def test_compilation_is_of_torch_operators():
    for backend in ("native", "triton"):
        with pytest.raises(ConfigError, match=f"compile=True .* kernels.backend='{backend}"):
            with_values(kernels__compile=True, kernels__backend=backend).resolve(MODEL, "cpu")
    resolved = with_values(kernels__compile=True).resolve(MODEL, "cpu")
    assert resolved.config.kernels.backend == "torch"
    assert any("kernels.compile" in note for note in resolved.notes)


def test_rows_of_those_who_have_left_need_a_batch_that_is_not_filled_up():
    sentence = (
        r"padding='batch' .* scheduling.policy='continuous' .* use scheduling.policy='static'"
    )
    with pytest.raises(ConfigError, match=sentence):
        with_values(kernels__padding="batch").resolve(MODEL, "cpu")
    static = with_values(kernels__padding="batch", scheduling__policy="static")
    assert static.resolve(MODEL, "cpu").padding == "batch"
    for values, field in (
        ({"kernels.cuda_graphs": True}, "kernels.cuda_graphs=True"),
        ({"scheduling.order": "mlfq"}, "scheduling.order='mlfq'"),
    ):
        with pytest.raises(ConfigError, match=field):
            static.with_values(values).resolve(MODEL, "cpu")
    for values in (
        {"kernels.compile": True},
        {"scheduling.async_scheduling": True},
        {"memory.kv_cache": False},
    ):
        static.with_values(values).resolve(MODEL, "cpu")


def test_padding_says_where_its_page_comes_from():
    resolved = with_values(kernels__padding="longest").resolve(MODEL, "cpu")
    assert any("kernels.padding='longest'" in note for note in resolved.notes)


HOSTILE = {
    int: [True, 2.5, 2.0, "2", float("inf"), float("nan"), 10**400, -(10**400), [2], b"2", 2j],
    float: [True, "0.1", float("nan"), float("inf"), 10**400, [0.1], b"1", 1j],
    bool: [0, 1, "True", 1.0, [], b"1"],
    str: [5, True, b"cpu", ["cpu"], "", "a\0b", "\ud800", 1.5],
}


@pytest.mark.parametrize("knob", describe(), ids=lambda knob: knob.path)
def test_every_field_refuses_what_is_not_of_its_type(knob):
    for value in [*HOSTILE[knob.type], object(), {}] + [None] * (not knob.optional):
        with pytest.raises(ConfigError) as caught:
            EngineConfig().with_values({knob.path: value})
        section, _, name = knob.path.rpartition(".")
        assert f"{section.capitalize() or 'Engine'}Config.{name}=" in str(caught.value)
        assert "expected" in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "knob",
    [knob for knob in describe() if knob.type in (int, float)],
    ids=lambda knob: knob.path,
)
def test_numbers_of_numpy_and_torch_become_plain_ones(knob):
    value = knob.default or (2 if knob.type is int else 0.5)
    makers = [np.int64, torch.tensor] if knob.type is int else [np.float64, torch.tensor]
    for make in makers:
        found = EngineConfig().with_values({knob.path: make(value)}).get(knob.path)
        assert type(found) is knob.type and found == pytest.approx(value)


def test_paths_and_devices_may_be_objects():
    assert MemoryConfig(disk_path=Path("/a/b")).disk_path == "/a/b"
    assert EngineConfig(device=torch.device("cpu")).device == "cpu"
