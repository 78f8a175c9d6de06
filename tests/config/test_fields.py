"""Fields are documented, reached by path, and refuse a value that is not of their type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minserve.config import ConfigError, EngineConfig, MemoryConfig, SchedulingConfig, describe


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


def test_a_section_is_no_field_and_its_fields_are_named():
    sentence = "EngineConfig.memory is a section, expected a field: .* such as 'memory.kv_cache'"
    with pytest.raises(ConfigError, match=sentence):
        EngineConfig().get("memory")
    with pytest.raises(ConfigError, match=sentence):
        EngineConfig().with_values({"memory": MemoryConfig()})


@pytest.mark.parametrize("values", [None, 3, "memory.block_size", [("seed", 1)]])
def test_values_that_are_no_mapping_are_refused(values):
    with pytest.raises(ConfigError, match=r"with_values: got .*, expected a mapping from paths"):
        EngineConfig().with_values(values)


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
