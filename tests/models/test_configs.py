"""config.json in all its dialects, and the features it may ask for that this decoder lacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minserve.models import ModelError, check_rotary_table, load_spec
from minserve.spec import ModelSpec, RopeSpec

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 100,
}
QWEN = {"model_type": "qwen2", "num_key_value_heads": 2}


def spec_of(directory: Path, **changes: Any) -> ModelSpec:
    values = {key: value for key, value in (BASE | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values))
    return load_spec(directory)


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.mixer.window for layer in spec.layers]


def test_bare_llama_config_gets_the_defaults_of_transformers(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    mixer = spec.layers[0].mixer
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == (4, 4, 4)
    assert not (mixer.qkv_bias or mixer.output_bias or mixer.qk_norm)
    assert mixer.rope == RopeSpec(10_000.0)
    assert spec.norm_eps == 1e-6 and spec.dtype == "float32" and not spec.tie_embeddings
    assert spec.bos_token_id == 1 and spec.eos_token_ids == (2,)


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 50,
        },
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25},
        None,
    ],
)
def test_older_rope_keys_mean_what_the_new_ones_mean(
    tmp_path: Path, scaling: dict[str, Any] | None
) -> None:
    old = spec_of(tmp_path, rope_theta=5e5, rope_scaling=scaling, torch_dtype="bfloat16")
    parameters = dict(scaling or {}, rope_theta=5e5)
    parameters["rope_type"] = parameters.pop("type", parameters.get("rope_type", "default"))
    new = spec_of(tmp_path, rope_parameters=parameters, dtype="bfloat16")
    assert old == new
    assert old.dtype == "bfloat16" and old.layers[0].mixer.rope.theta == 5e5


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        ({"rope_type": "default"}, 100),
        ({"rope_type": "linear", "factor": 2.5}, 250),
        ({"rope_type": "dynamic", "factor": 2.0}, 200),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25}, 100),
    ],
)
def test_longest_position_counts_the_scaling(
    tmp_path: Path, scaling: dict[str, Any], longest: int
) -> None:
    assert spec_of(tmp_path, rope_parameters=scaling).max_position == longest


def test_specs_of_saved_transformers_configs_agree_with_them(tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    for family in ("llama", "mistral", "qwen2", "qwen3"):
        config = CONFIG_MAPPING[family](num_hidden_layers=2)
        config.save_pretrained(tmp_path)
        spec = load_spec(tmp_path)
        mixer = spec.layers[1].mixer
        assert mixer.num_kv_heads == config.num_key_value_heads
        assert mixer.head_dim == getattr(config, "head_dim", config.hidden_size // 32)
        assert mixer.window == getattr(config, "sliding_window", None)
        assert spec.max_position == config.max_position_embeddings
        assert mixer.qk_norm == (family == "qwen3") and mixer.qkv_bias == (family == "qwen2")
        # A file that leaves everything optional out means the same.
        kept = ("model_type", "vocab_size", "hidden_size", "intermediate_size",
                "num_hidden_layers", "num_attention_heads")  # fmt: skip
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({key: values[key] for key in kept}))
        bare = load_spec(tmp_path)
        # transformers always writes a number format; a bare file says nothing of it.
        assert replace(bare, dtype=spec.dtype) == spec, family


@pytest.mark.parametrize("family", ["granite", "gemma", "gemma2", "smollm3"])
def test_bare_files_of_other_families_get_the_defaults_of_transformers(
    tmp_path: Path, family: str
) -> None:
    from transformers import CONFIG_MAPPING

    # Small, and divisible by every family's default of KV heads.
    sizes = {"num_hidden_layers": 5, "num_attention_heads": 16, "hidden_size": 64}
    CONFIG_MAPPING[family](**sizes).save_pretrained(tmp_path)
    spec = load_spec(tmp_path)
    kept = ("model_type", "vocab_size", "intermediate_size", *sizes)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: values[key] for key in kept}))
    assert replace(load_spec(tmp_path), dtype=spec.dtype) == spec


def test_the_largest_rotary_table_is_half_a_gibibyte(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, head_dim=128)
    check_rotary_table(spec, 1 << 20)
    with pytest.raises(ModelError, match=r"claim 1,048,577 positions, .* 536,871,424 bytes"):
        check_rotary_table(spec, (1 << 20) + 1)


def test_gemma_means_the_approximation_of_gelu(tmp_path: Path) -> None:
    family = QWEN | {"model_type": "gemma"}

    def activation(**changes: Any) -> str:
        return spec_of(tmp_path, **family, **changes).layers[0].feed_forward.activation  # type: ignore[attr-defined,no-any-return]

    assert activation() == activation(hidden_act="gelu") == "gelu_tanh"
    assert activation(hidden_act="gelu_pytorch_tanh") == "gelu_tanh"
    # Its code reads hidden_act alone.
    assert activation(hidden_act="silu", hidden_activation="gelu_pytorch_tanh") == "silu"


def test_windows_of_gemma2_layers(tmp_path: Path) -> None:
    two = QWEN | {"model_type": "gemma2", "sliding_window": 8}
    assert windows(spec_of(tmp_path, **two)) == [8, None, 8]
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    assert windows(spec_of(tmp_path, **two, layer_types=kinds)) == [None, None, 8]


def test_windows_and_positions_of_smollm3_layers(tmp_path: Path) -> None:
    three = QWEN | {"model_type": "smollm3", "sliding_window": 8}

    def rotated(**changes: Any) -> list[bool]:
        layers = spec_of(tmp_path, **three, **changes).layers
        return [layer.mixer.rope is not None for layer in layers]

    assert rotated() == [True] * 3
    assert rotated(num_hidden_layers=5) == [True, True, True, False, True]
    assert rotated(no_rope_layer_interval=2) == [True, False, True]
    # The list may be longer than the model, as after layers were cut off.
    assert rotated(no_rope_layers=[0, 1, 0, 1, 1]) == [False, True, False]
    on = three | {"use_sliding_window": True, "no_rope_layers": [0, 1, 0]}
    assert windows(spec_of(tmp_path, **on)) == [8, None, 8]
    assert windows(spec_of(tmp_path, **on | {"use_sliding_window": False})) == [None] * 3


def test_windows_of_qwen_layers(tmp_path: Path) -> None:
    on = QWEN | {"use_sliding_window": True, "sliding_window": 8}
    assert windows(spec_of(tmp_path, **QWEN, sliding_window=8)) == [None] * 3
    assert windows(spec_of(tmp_path, **on, max_window_layers=1)) == [None, 8, 8]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(spec_of(tmp_path, **on, layer_types=kinds)) == [8, None, 8]


def test_dtype_comes_from_the_weights_when_the_config_is_silent(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(16).half()}, tmp_path / "model.safetensors")
    assert spec_of(tmp_path).dtype == "float16"
    assert spec_of(tmp_path, dtype="float32").dtype == "float32"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, r"model_type .* is 'gpt2': .*llama, mistral, qwen2, qwen3"),
    ({"model_type": ...}, "model_type .* is missing"),
    ({"hidden_act": "gelu"}, "hidden_act .* is 'gelu': expected one of 'silu'"),
    ({"model_type": "gemma2", "num_key_value_heads": 2, "hidden_activation": "relu"},
     "hidden_activation .* is 'relu': expected one of 'silu'"),
    ({"model_type": "gemma2", "num_key_value_heads": 2, "use_bidirectional_attention": True},
     "use_bidirectional_attention .* is True: expected false"),
    ({"model_type": "gemma2", "num_key_value_heads": 2, "attn_logit_softcapping": 0},
     "attn_logit_softcapping .* is 0: expected a number at least 1e-06 and at most 1e"),
    ({"model_type": "gemma2", "num_key_value_heads": 2, "query_pre_attn_scalar": 1e-300},
     "query_pre_attn_scalar .* is 1e-300: expected a number at least 1e-06"),
    ({"model_type": "granite", "logits_scaling": 1e-300},
     "logits_scaling .* is 1e-300: expected a number at least 1e-06"),
    ({"model_type": "granite", "attention_multiplier": -1}, "attention_multiplier .* is -1: expec"),
    ({"hidden_act": ["silu"]}, "hidden_act .* is .'silu'.: expected one of 'silu'"),
    ({"model_type": "gemma2", "num_key_value_heads": 2, "hidden_activation": {}},
     "hidden_activation .* is {}: expected one of 'silu'"),
    ({"model_type": "granite", "residual_multiplier": "1"}, "residual_multiplier .* is '1'"),
    ({"model_type": "smollm3", "num_key_value_heads": 2, "no_rope_layers": [1, 2, 0]},
     "no_rope_layers .*1 for a layer with rotary embedding"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config .* is 'awq': .*none"),
    ({"quantization_config": "awq"}, "quantization_config .*unquantized"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor .* is 0\.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor .* is 0\.5"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_type .* is 'longrope': .*llama3, yarn"),
    ({"rope_scaling": {"type": "linear"}}, "factor .* is missing"),
    ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor .* is missing"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one set of parameters"),
    ({"num_key_value_heads": 3}, "num_key_value_heads .* is 3: .*divisor"),
    ({"head_dim": 5}, "head_dim .* is 5: .*even"),
    ({"hidden_size": 18}, "hidden_size .* is 18: .*multiple"),
    ({"hidden_size": ...}, "hidden_size .* is missing"),
    ({"num_hidden_layers": 10_001}, "num_hidden_layers .* is 10001: .*between 1 and 10,000"),
    ({"vocab_size": "32"}, "vocab_size .* is '32'"),
    ({"dtype": "float8_e4m3fn"}, "dtype .* is 'float8_e4m3fn'"),
    (QWEN | {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    (QWEN | {"layer_types": ["sliding_attention"] * 3}, "layer_types .*use_sliding_window"),
    ({"model_type": "mistral", "num_key_value_heads": 2,
      "layer_types": ["full_attention"] * 3}, "layer_types .*sliding_window=4096"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_cannot_be_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        spec_of(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_broken_config_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_spec(tmp_path)
