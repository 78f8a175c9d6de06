"""What was asked becomes what will run: everything is filled in, and choices are said."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from config.asked import MODEL, PAGE_BYTES, config_of, pretend_gpu

from minserve.config import ConfigError, EngineConfig, Facts, resolve
from minserve.config.question import Question
from minserve.config.rules import device as device_rules
from minserve.kernels import TorchOps, TritonUnavailable, select_ops


def test_resolve_leaves_nothing_to_guess():
    resolved = resolve(config_of({}), MODEL)
    assert resolved.dtype is torch.float32
    assert resolved.max_model_len == resolved.config.scheduling.max_model_len == 1024
    assert resolved.max_num_batched_tokens == 512
    assert resolved.config.memory.kv_bytes is not None
    assert resolved.block_bytes == PAGE_BYTES
    assert resolve(resolved.config, MODEL).config == resolved.config


def test_what_was_asked_for_is_kept_where_something_else_runs():
    whole = {"scheduling.enable_chunked_prefill": False, "memory.layout": "contiguous"}
    resolved = resolve(config_of(whole), MODEL)
    assert resolved.asked["scheduling.max_num_batched_tokens"] is None
    assert resolved.config.memory.copy_on_write is False
    assert resolved.asked["memory.copy_on_write"] is True
    assert "memory.layout" not in resolved.asked
    again = resolved.filled({"memory.copy_on_write": True, "kernels.backend": "torch"})
    assert again.config.memory.copy_on_write is True
    assert again.asked["memory.copy_on_write"] is True
    assert again.asked["kernels.backend"] == resolved.config.kernels.backend


def test_the_device_that_is_given_stands_in_for_the_one_that_is_configured():
    asked = EngineConfig(device="cuda:7")
    for device in ("cpu", torch.device("cpu")):
        resolved = resolve(asked, MODEL, device)
        assert resolved.config.device == "cpu" and resolved.device == torch.device("cpu")


def test_a_long_device_name_is_shortened():
    with pytest.raises(
        ConfigError, match=r"EngineConfig\.device='xxx.*expected auto, cpu"
    ) as caught:
        resolve(EngineConfig(), MODEL, device="x" * 10**6)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((None, MODEL), "config=None: expected an EngineConfig"),
        ((EngineConfig, MODEL), "config=<class .*: expected an EngineConfig"),
        ((EngineConfig(), "zoo/draft"), "model='zoo/draft': expected a ModelSpec"),
        ((EngineConfig(), MODEL, None, 3), "facts=3: expected Facts"),
        ((EngineConfig(), MODEL, None, 0), "facts=0: expected Facts"),
        ((EngineConfig(), MODEL, None, Facts), "facts=<class .*: expected Facts"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(*arguments)


def test_notes_of_the_model_come_first():
    resolved = resolve(config_of({"dtype": "auto"}), replace(MODEL, notes=("of the model",)))
    assert resolved.notes[0] == "of the model" and resolved.notes[1].startswith("dtype: ")


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_on_a_cpu_depends_on_its_instructions(monkeypatch, has_bfloat16, dtype):
    monkeypatch.setattr(device_rules, "cpu_has_bfloat16", lambda: has_bfloat16)
    resolved = resolve(config_of({"dtype": "auto"}), MODEL)
    assert resolved.config.dtype == dtype
    assert any(note.startswith(f"dtype: {dtype}") for note in resolved.notes)


def test_auto_dtype_never_is_float16_on_a_cpu():
    resolved = resolve(config_of({"dtype": "auto"}), replace(MODEL, dtype="float16"))
    assert resolved.dtype is torch.float32


@pytest.mark.parametrize(("capability", "old"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_below_8_0_runs_torch_operators_in_float16_and_says_so(monkeypatch, capability, old):
    pretend_gpu(monkeypatch, capability)
    on_gpu = config_of({"device": "cuda", "dtype": "auto", "memory.kv_bytes": 1 << 24})
    resolved = resolve(on_gpu, MODEL)
    assert resolved.dtype is (torch.float16 if old else torch.bfloat16)
    said = [note for note in resolved.notes if note.startswith("kernels.backend: torch, because")]
    assert len(said) == old
    asked = on_gpu.with_values({"kernels.backend": "triton"})
    if old:
        assert "compute capability 7.5, and below 8.0" in said[0]
        assert isinstance(select_ops("auto", resolved.device, resolved.dtype), TorchOps)
        with pytest.raises(TritonUnavailable, match="without matrix units"):
            select_ops("triton", resolved.device, resolved.dtype)
        with pytest.raises(ConfigError, match=r"backend='triton' and device='cuda': .*7\.5"):
            resolve(asked, MODEL)
    else:
        assert resolve(asked, MODEL).config.kernels.backend == "triton"


def test_on_a_gpu_the_pool_is_left_to_a_profile_run(monkeypatch):
    pretend_gpu(monkeypatch, (9, 0))
    assert resolve(config_of({"device": "cuda"}), MODEL).config.memory.kv_bytes is None


def test_rows_of_ended_requests_go_with_every_switch_that_keeps_static_batches():
    static = config_of({"kernels.padding": "batch", "scheduling.policy": "static"})
    assert resolve(static, MODEL).padding == "batch"
    for path, value in (
        ("kernels.compile", True),
        ("scheduling.async_scheduling", True),
        ("memory.kv_cache", False),
    ):
        resolve(static.with_values({path: value}), MODEL)
    for path, value in (("kernels.cuda_graphs", True), ("scheduling.order", "mlfq")):
        with pytest.raises(ConfigError, match=f"{path}="):
            resolve(static.with_values({path: value}), MODEL)


def test_steps_are_padded_to_the_graphs_there_are():
    resolved = resolve(config_of({"kernels.cuda_graphs": True}), MODEL)
    assert (resolved.padding, resolved.max_graph_rows) == ("ladder", 64)
    # The same rows without graphs.
    again = resolve(config_of({"kernels.padding": "ladder"}), MODEL)
    assert (again.padding, again.max_graph_rows) == ("ladder", 64)


def with_disk(folder: Path) -> EngineConfig:
    tiers = {"prefix_cache": "hash", "host_bytes": 1 << 20, "disk_bytes": 1 << 20}
    tiers["disk_path"] = str(folder)
    return config_of({f"memory.{name}": value for name, value in tiers.items()})


def test_a_missing_directory_for_the_disk_tier_is_accepted_and_not_made(tmp_path):
    resolve(with_disk(tmp_path / "one" / "two"), MODEL)
    assert not (tmp_path / "one").exists()


def test_a_directory_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"memory\.disk_path=.* may not be written to\): name an"):
        resolve(with_disk(tmp_path / "one" / "two"), MODEL)


def test_no_compiler_is_looked_for_where_nothing_is_compiled_on_a_cpu(monkeypatch):
    looks = []
    facts = Facts(why_no_compiler=lambda: looks.append(1))
    resolve(config_of({}), MODEL, facts=facts)
    assert not looks
    resolve(config_of({"kernels.compile": True}), MODEL, facts=facts)
    assert looks
    pretend_gpu(monkeypatch, (9, 0))
    resolve(config_of({"kernels.compile": True, "device": "cuda"}), MODEL, facts=facts)
    assert len(looks) == 1


def test_a_rule_that_is_asked_too_early_finds_nothing_settled():
    question = Question(config_of({}), MODEL, Facts())
    with pytest.raises(LookupError, match=r"max_model_len is not settled yet"):
        _ = question.resolved
