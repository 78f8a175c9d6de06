"""What a stranger's directory may try, one by one: run code, take memory, hang, or be believed."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.hostile import CONFIG, copy_of, write_model
from models.test_hostile_directories import CONFIG as ENGINE
from models.test_hostile_directories import use
from safetensors.torch import load_file, save_file

from minserve import LLM
from minserve.loading import load_model
from minserve.models import ModelError, check_rotary_table, load_spec, load_weights
from minserve.tokenizer import Tokenizer, TokenizerError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A valid directory, to be damaged."""
    return copy_of(whole, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; ... removes one."""
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


MODULE = """
import pathlib
pathlib.Path({marker!r}).touch()
class Evil: pass
from transformers import PreTrainedTokenizerFast, PretrainedConfig
class EvilTokenizer(PreTrainedTokenizerFast): pass
class EvilConfig(PretrainedConfig): pass
"""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("tokenizer_class", ["EvilTokenizer", "GPT2Tokenizer", ...])
def test_no_code_from_the_directory_runs_whatever_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, tokenizer_class: Any
) -> None:
    model = write_model(tmp_path / "model", legacy_tokenizer=legacy)
    marker = tmp_path / "ran"
    (model / "evil.py").write_text(MODULE.format(marker=str(marker)))
    (model / "tokenizer.py").write_text(MODULE.format(marker=str(marker)))
    reduced = f"cposix\nsystem\n(S'touch {marker}'\ntR."
    (model / "pytorch_model.bin").write_bytes(reduced.encode())
    (model / "vocab.pkl").write_bytes(reduced.encode())
    auto_map = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
    }
    edit(model / "config.json", auto_map=auto_map, tokenizer_class=tokenizer_class)
    edit(model / "tokenizer_config.json", auto_map=auto_map, tokenizer_class=tokenizer_class)
    answers = io.StringIO("y\n" * 50)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.chdir(tmp_path)
    try:
        use(model)
    except TokenizerError as error:
        assert legacy and "is never run" in str(error)
    assert not marker.exists()
    assert answers.tell() == 0, "something asked on standard input"


def test_only_pickled_weights_are_refused_without_opening_them(model: Path) -> None:
    marker = model / "ran"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(ModelError, match="only as pickle"):
        load_model(model, ENGINE, progress=False)
    assert not marker.exists()


HUGE: list[tuple[str, Any]] = [
    *((name, 10**12) for name in ("intermediate_size", "hidden_size", "vocab_size", "head_dim",
                                  "num_attention_heads", "max_position_embeddings")),
    # As large as a number may be, so that only the header says no.
    *((name, 1 << 24) for name in ("intermediate_size", "hidden_size", "vocab_size")),
    ("num_attention_heads", 1 << 16), ("head_dim", 1 << 14),
    ("num_hidden_layers", 10**7), ("num_hidden_layers", 10_000),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), HUGE)
def test_a_huge_claim_is_refused_at_once_and_takes_no_memory(
    model: Path, key: str, value: int
) -> None:
    edit(model / "config.json", **{key: value})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_weights(model, load_spec(model), torch.float32, progress=False)
    assert time.thread_time() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB


def test_a_length_is_refused_where_its_table_would_not_fit_and_nobody_named_one(
    model: Path,
) -> None:
    edit(model / "config.json", max_position_embeddings=1 << 24, rope_scaling=None)
    spec = load_spec(model)
    [mixer, _] = (layer.mixer for layer in spec.layers)
    layer = replace(spec.layers[0], mixer=replace(mixer, head_dim=128))
    check_rotary_table(spec, 1 << 24)
    with pytest.raises(ModelError, match=r"16,777,216 positions.*set scheduling\.max_model_len"):
        check_rotary_table(replace(spec, layers=(layer,)), 1 << 24)


# Sizes of a tensor more or less than config.json calls for, in every place that names one.
@pytest.mark.parametrize("key", ["intermediate_size", "hidden_size", "vocab_size", "head_dim",
                                 "num_attention_heads", "num_key_value_heads"])  # fmt: skip
def test_every_size_is_compared_with_the_header(model: Path, key: str) -> None:
    edit(model / "config.json", **{key: CONFIG[key] * 2})
    if key == "num_key_value_heads":
        edit(model / "config.json", num_key_value_heads=1)
    with pytest.raises(ModelError, match=r"has shape .* and config\.json calls for"):
        load_weights(model, load_spec(model), torch.float32, progress=False)


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NUMBERS: list[tuple[dict[str, Any], str]] = [
    *(({"rope_theta": value}, "rope_theta") for value in (0, -1.0, 1, 1e300, "1e4", True, [1e4])),
    *(({"rms_norm_eps": value}, "rms_norm_eps") for value in (0, -1e-6, 2.0, 1e-300, "x", False)),
    *(({"hidden_size": value}, "hidden_size") for value in (0, -16, 16.0, True, "16", [16])),
    *(({"vocab_size": value}, "vocab_size") for value in (0, 320.0, True, 10**39)),
    *(({"num_hidden_layers": value}, "num_hidden_layers") for value in (0, -1, 2.0, True)),
    *(({"num_key_value_heads": value}, "num_key_value_heads") for value in (0, 3, 8, True)),
    *(({"tie_word_embeddings": value}, "tie_word_embeddings") for value in (0, 1, "true", [])),
    *(({"eos_token_id": value}, "eos_token_id") for value in (1.0, True, "1", [1, None], [[1]])),
    *(({"is_causal": value}, "is_causal") for value in (False, None, 0)),
    *(({"rope_scaling": YARN | change}, next(iter(change))) for change in (
        {"factor": 0}, {"factor": -2}, {"factor": 1e308}, {"factor": 10**30}, {"factor": True},
        {"factor": "2"}, {"beta_fast": -1}, {"beta_slow": 1e300}, {"attention_factor": -1},
        {"attention_factor": 0}, {"mscale": -1.0}, {"mscale_all_dim": "x"}, {"truncate": 1},
        {"original_max_position_embeddings": 0}, {"original_max_position_embeddings": 32.0},
        {"rope_theta": 1.0})),
    *(({"rope_scaling": LLAMA3 | change}, next(iter(change))) for change in (
        {"low_freq_factor": 0}, {"high_freq_factor": 1.0}, {"high_freq_factor": None})),
    ({"rope_scaling": []}, "rope_scaling"), ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope_parameters": 5}, "rope_parameters"), ({"per_layer_config": {}}, "per_layer_config"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 1 << 24}}, "factor"),
    ({"model_type": "qwen2", "layer_types": [{}, []]}, "layer_types"),
    ({"model_type": "mistral", "sliding_window": None, "layer_types": [{}, {}]}, "layer_types"),
    ({"model_type": ["llama"]}, "model_type"), ({"dtype": ["float32"]}, "dtype"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "key"), NUMBERS)
def test_a_number_of_another_type_or_out_of_range_is_refused_by_name(
    model: Path, changes: dict[str, Any], key: str
) -> None:
    edit(model / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        load_spec(model)
    message = str(caught.value)
    assert message.startswith(f"{key} in {model / 'config.json'} is ")
    assert ": expected " in message and len(message) < 600


@pytest.mark.parametrize(
    "changes",
    [{"do_sample": 1}, {"temperature": -0.1}, {"temperature": "hot"}, {"temperature": True},
     {"top_p": 0}, {"top_p": 1.5}, {"top_k": -2}, {"top_k": 5.0}, {"min_p": 2}, {"min_p": []},
     {"repetition_penalty": 0}, {"max_new_tokens": 0}, {"max_new_tokens": 1.5},
     {"eos_token_id": "x"}],
)  # fmt: skip
def test_generation_settings_are_checked_before_any_weight_is_read(
    model: Path, changes: dict[str, Any]
) -> None:
    edit(model / "generation_config.json", **changes)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"{next(iter(changes))} in .*generation_config\.json is"):
        load_model(model, ENGINE, progress=False)


def test_end_tokens_beyond_the_vocabulary_are_left_out_with_a_note(model: Path) -> None:
    edit(model / "generation_config.json", eos_token_id=[1, 320, 10**30])
    spec = load_spec(model)
    assert spec.eos_token_ids == (1,)
    assert any("eos_token_id 320, 1000" in note and "ignored" in note for note in spec.notes)
    with LLM(model, ENGINE, progress=False) as llm:
        assert any("eos_token_id 320" in note for note in llm.config.notes)


FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "loop"])
def test_only_regular_files_are_read_and_none_is_waited_for(
    model: Path, name: str, kind: str
) -> None:
    path = model / name
    if name == "special_tokens_map.json":
        edit(model / "tokenizer_config.json", added_tokens_decoder=...)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    before = os.listdir("/proc/self/fd")
    with pytest.raises((ModelError, TokenizerError), match=f"{path} cannot be read"):
        load_model(model, ENGINE, progress=False)
    assert os.listdir("/proc/self/fd") == before


def test_links_to_regular_files_are_read_as_in_the_hub_cache(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(f"../blobs/{number}")
    use(model)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [17]}, r"of \[17\] F32 numbers spans 64 bytes"),
        ({"shape": [16.0]}, "lacks a dtype, a shape"),
        ({"shape": [True]}, "lacks a dtype, a shape"),
        ({"shape": [-16]}, "lacks a dtype, a shape"),
        ({"shape": [2**62, 2**62]}, "lacks a dtype, a shape"),
        ({"shape": [2**61, 2**61]}, "numbers spans 64 bytes"),
        ({"dtype": "F64"}, "F64 numbers spans 64 bytes"),
        ({"dtype": None}, "lacks a dtype"),
        ({"dtype": "F4"}, "is stored as F4: only unquantized"),
        ({"data_offsets": [0, 64]}, "spans bytes 0 to 64|comes next"),
        ({"data_offsets": [-64, 0]}, "data_offsets"),
        ({"data_offsets": [64]}, "data_offsets"),
        ({"data_offsets": [10**17, 10**17 + 64]}, "comes next"),
    ],
)
def test_a_header_that_lies_is_refused_by_tensor(
    model: Path, change: dict[str, Any], sentence: str
) -> None:
    path = model / "model.safetensors"
    header, data = header_of(path)
    header["model.norm.weight"] |= change
    write_header(path, header, data)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_weights(model, load_spec(model), torch.float32, progress=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**9, 2**63, 2**64 - 1])
def test_a_header_of_any_length_is_refused_without_reading_it(model: Path, length: int) -> None:
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(1 << 40)  # sparse: room for a header of any length
    with pytest.raises(ModelError, match=r"model\.safetensors .*(header|safetensors)"):
        load_weights(model, load_spec(model), torch.float32, progress=False)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", shards=2)
    one, two = sorted(model.glob("*.safetensors"))
    name = next(iter(load_file(one)))
    save_file(load_file(two) | {name: load_file(one)[name]}, two)
    with pytest.raises(ModelError, match=f"stores '{name}' twice, in {one.name} and {two.name}"):
        load_weights(model, load_spec(model), torch.float32, progress=False)


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "/etc/passwd.safetensors"}}', '{"weight_map": {"a": null}}',
     '{"weight_map": {"a": "../model.safetensors"}}',
     '{"weight_map": {"a": "b\\u0000.safetensors"}}',
     '{"weight_map": {"a": "x/y.safetensors"}}', '{"weight_map": {"a": "missing.safetensors"}}'],
)  # fmt: skip
def test_an_index_names_files_beside_it_or_is_refused(tmp_path: Path, index: str) -> None:
    model = write_model(tmp_path / "model", shards=2)
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=str(model)):
        load_weights(model, load_spec(model), torch.float32, progress=False)


SETTINGS = [
    ("bos_token", 5), ("bos_token", {"content": None}), ("eos_token", ["</s>"]),
    ("added_tokens_decoder", [1]), ("added_tokens_decoder", {"x": "y"}),
    ("added_tokens_decoder", {"1": {"content": "a", "special": 1}}),
    ("extra_special_tokens", "abc"), ("extra_special_tokens", [5]), ("chat_template", 5),
    ("chat_template", [{"name": "default"}]), ("chat_template", ["x"]),
    ("tokenizer_class", 5), ("split_special_tokens", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), SETTINGS)
def test_settings_of_a_tokenizer_are_type_checked(model: Path, key: str, value: Any) -> None:
    path = model / "tokenizer_config.json"
    edit(path, **{key: value})
    with pytest.raises(TokenizerError, match=rf"{key}.* in {path} is .*: expected"):
        Tokenizer.from_dir(model)


def test_a_refused_directory_leaves_no_file_open_and_no_memory_behind(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError):
        load_model(model, ENGINE, progress=False)
    before = os.listdir("/proc/self/fd")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        with pytest.raises(ModelError, match="no tensor"):
            load_model(model, ENGINE, progress=False)
    assert os.listdir("/proc/self/fd") == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB
