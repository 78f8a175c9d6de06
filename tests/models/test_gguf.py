"""GGUF files as models: the same weights and tokens as the checkpoint they were made from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import (
    BF16,
    F16,
    F32,
    INT32,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q6_K,
    Q8_0,
    UINT64,
    File,
    Stored,
    dense,
    random_blocks,
)
from models.gguf_models import file_of, tokenizer_keys
from models.hostile import NASTY
from models.oracle import logits, random_model, save
from models.test_loading import assert_same

from minserve import LLM, EngineConfig, SamplingParams
from minserve.config import ConfigError
from minserve.files.gguf_file import GGUFFile, mapped
from minserve.models import (
    ModelError,
    WeightStore,
    load_generation_defaults,
    load_spec,
    load_weights,
)
from minserve.models.loading.gguf import blocks
from minserve.models.loading.gguf.blocks import read_numbers
from minserve.tokenizer import TokenizerError

VOCABULARY = 261
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CONFIG = EngineConfig(device="cpu", dtype="float32").with_values({"memory.kv_bytes": 1 << 20})


def config_of(family: str, **changes: Any) -> Any:
    import transformers

    named = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
             "mistral": "MistralConfig"}[family]  # fmt: skip
    if family == "qwen2":
        # Its own configuration has no head_dim; the converter writes hidden_size / heads.
        changes = {"hidden_size": 32, **changes}
    config = getattr(transformers, named)(**SIZES | changes)
    config.head_dim = SIZES["head_dim"]
    return config


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model(config_of("llama"), 0)


@pytest.mark.parametrize("name", CASES)
def test_a_file_holds_the_weights_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    family, changes = CASES[name]
    model = random_model(config_of(family, **changes), 1)
    theirs = save(model, tmp_path / "theirs")
    ours = file_of(model).write(tmp_path / "ours.gguf")
    spec = load_spec(ours)
    assert spec.layers == load_spec(theirs).layers
    weights = load_weights(ours, spec, torch.float32)
    assert_same(weights, load_weights(theirs, load_spec(theirs), torch.float32))
    assert weights.tied == model.config.tie_word_embeddings


def test_a_file_and_its_checkpoint_give_the_same_tokens(tmp_path: Path, llama: Any) -> None:
    path = file_of(llama, **tokenizer_keys()).write(tmp_path / "m.gguf")
    theirs = save(llama, tmp_path / "theirs")
    prompts = [[3, 4, 5], [7] * 20]
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    found = []
    for model in (path, theirs):
        with LLM(model, CONFIG, progress=False) as llm:
            found.append([out.token_ids for out in llm.generate(prompts, params)])
    assert found[0] == found[1]
    best = logits(llama, [*prompts[0], *found[0][0]])[2:-1].argmax(-1).tolist()
    assert best == list(found[0][0])


def test_a_file_is_used_like_a_directory(tmp_path: Path, llama: Any) -> None:
    path = file_of(llama, **tokenizer_keys()).write(tmp_path / "m.gguf")
    with LLM(str(path), CONFIG, progress=False) as llm:
        assert llm.encode("hell") == [260]
        params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
        assert len(llm.generate("hello", params)[0].token_ids) == 4
        answer = llm.chat([{"role": "user", "content": "hell"}], params)
        assert len(answer.token_ids) == 4
        assert llm.config.model.eos_token_ids == (1,)
        assert llm.config.model.bos_token_id == 0


def test_end_tokens_are_those_of_a_text_a_turn_and_a_message(tmp_path: Path, llama: Any) -> None:
    keys = tokenizer_keys(eot_token_id=7, eom_token_id=9)
    assert load_spec(file_of(llama, **keys).write(tmp_path / "m.gguf")).eos_token_ids == (1, 7, 9)
    without = tokenizer_keys(eos_token_id=..., bos_token_id=...)
    spec = load_spec(file_of(llama, **without).write(tmp_path / "n.gguf"))
    # The family's own defaults (1 and 2) are for config.json; a file without keys has none.
    assert (spec.eos_token_ids, spec.bos_token_id) == ((), None)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(F32, "float32"), (F16, "float16"), (BF16, "bfloat16")]
)
def test_the_number_format_is_that_of_the_matrices(
    tmp_path: Path, llama: Any, kind: int, dtype: str
) -> None:
    path = file_of(llama, kind).write(tmp_path / "m.gguf")
    spec = load_spec(path)
    assert spec.dtype == dtype
    stored = llama.model.embed_tokens.weight.detach()
    weights = load_weights(path, spec, getattr(torch, dtype))
    found = weights.embedding.table.codes.float()
    bits = {F32: 1e-9, F16: 1e-3, BF16: 1e-2}[kind]
    torch.testing.assert_close(found, stored, rtol=bits, atol=bits * 1e-2)


def by_definition(stored: Stored) -> np.ndarray:
    """The numbers of a quantized tensor, block by block, from ggml's description of the formats."""
    size = {Q4_0: 18, Q4_1: 20, Q8_0: 34}[stored.kind]
    numbers: list[float] = []
    for at in range(0, len(stored.data), size):
        block = stored.data[at : at + size]
        scale = np.float32(np.frombuffer(block, "<f2", 1)[0])
        if stored.kind == Q8_0:
            numbers += [scale * np.float32(code) for code in np.frombuffer(block, np.int8, 32, 2)]
            continue
        begin = 4 if stored.kind == Q4_1 else 2
        low = [byte & 15 for byte in block[begin:]]
        high = [byte >> 4 for byte in block[begin:]]
        if stored.kind == Q4_0:
            numbers += [scale * np.float32(code - 8) for code in low + high]
        else:
            lowest = np.float32(np.frombuffer(block, "<f2", 1, 2)[0])
            numbers += [scale * np.float32(code) + lowest for code in low + high]
    return np.array(numbers, np.float32).reshape(stored.shape)


def numbers_of(path: Path, stored: Stored) -> torch.Tensor:
    file = GGUFFile.read(File({}, {"first": dense([1.0]), "a": stored}).write(path))
    with mapped(path) as content:
        return read_numbers(path, content, file.tensors["a"])


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0])
def test_blocks_are_the_numbers_of_the_formats_definition(tmp_path: Path, kind: int) -> None:
    stored = random_blocks((6, 96), kind, seed=kind)
    found = numbers_of(tmp_path / "m.gguf", stored)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), by_definition(stored))


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q5_0, Q4_K, Q6_K])
def test_numbers_are_those_of_the_gguf_package(tmp_path: Path, kind: int) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    if kind in (F32, F16, BF16):
        stored = dense(np.random.default_rng(0).normal(size=(5, 256)), kind)
    else:
        stored = random_blocks((5, 256), kind, seed=kind)
    raw = np.frombuffer(stored.data, np.uint8).reshape(5, -1)
    expected = quants.dequantize(raw, GGMLQuantizationType(kind))
    assert np.array_equal(numbers_of(tmp_path / "m.gguf", stored).float().numpy(), expected)


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0])
def test_a_quantized_model_computes_with_the_numbers_it_stores(
    tmp_path: Path, llama: Any, kind: int
) -> None:
    file = file_of(llama)
    tensors = {
        name: random_blocks(each.shape, kind, seed=index) if len(each.shape) > 1 else each
        for index, (name, each) in enumerate(file.tensors.items())
    }
    plain = {
        name: dense(by_definition(each)) if len(each.shape) > 1 else each
        for name, each in tensors.items()
    }
    quantized = file.but(tensors=tensors).write(tmp_path / "quantized.gguf")
    dequantized = file.but(tensors=plain).write(tmp_path / "plain.gguf")
    assert load_spec(quantized).dtype == "float16"
    found = [
        load_weights(path, load_spec(path), torch.float32) for path in (quantized, dequantized)
    ]
    assert_same(*found)


def test_without_the_package_a_k_quant_names_the_extra(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    file = file_of(llama, **{"llama.feed_forward_length": 256})
    tensors = dict(file.tensors)
    for layer in range(2):
        tensors[f"blk.{layer}.ffn_gate.weight"] = dense(np.ones((256, 32)))
        tensors[f"blk.{layer}.ffn_up.weight"] = dense(np.ones((256, 32)))
        tensors[f"blk.{layer}.ffn_down.weight"] = random_blocks((32, 256), Q4_K)
    path = file.but(tensors=tensors).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError) as caught:
        load_weights(path, load_spec(path), torch.float32)
    assert "blk.0.ffn_down.weight" in str(caught.value) and "Q4_K" in str(caught.value)
    assert "pip install 'minserve[gguf]'" in str(caught.value)


def test_reading_takes_one_tensor_beside_the_model(tmp_path: Path) -> None:
    """Peak of everything numpy and Python allocate is not torch's; so torch's own are counted."""
    shape = (512, 1024)
    stored = {f"t{index}": random_blocks(shape, Q8_0, seed=index) for index in range(4)}
    path = File({}, stored).write(tmp_path / "m.gguf")
    table = GGUFFile.read(path).tensors
    with mapped(path) as content, torch.profiler.profile(profile_memory=True) as profile:
        for tensor in table.values():
            read_numbers(path, content, tensor)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    one = 4 * shape[0] * shape[1]
    assert one <= peak <= 2 * one + 32 * 4 * 8 * blocks._BLOCKS_AT_ONCE


def rope_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them for Llama 3."""
    found = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head_dim)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_read_from_its_factors(
    tmp_path: Path, llama: Any, factor: float
) -> None:
    parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = random_model(
        config_of("llama", rope_parameters=parameters, max_position_embeddings=131_072), 2
    )
    file = file_of(model)
    factors = dense(rope_factors(8, 500_000.0, factor))
    path = file.but(tensors={**file.tensors, "rope_freqs.weight": factors}).write(
        tmp_path / "m.gguf"
    )
    spec, theirs = load_spec(path), load_spec(save(model, tmp_path / "theirs"))
    assert spec.layers == theirs.layers and spec.max_position == theirs.max_position
    load_weights(path, spec, torch.float32)
    other = dense(rope_factors(8, 500_000.0, factor) * np.array([1.0, 1.0, 1.1, 1.0]))
    path = file.but(tensors={**file.tensors, "rope_freqs.weight": other}).write(tmp_path / "o.gguf")
    with pytest.raises(ModelError, match=r"'rope_freqs\.weight'.*expected Llama 3's factors"):
        load_spec(path)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_scalings_are_those_of_a_config(tmp_path: Path, kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    keys = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 2.0}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = 64
        keys["llama.rope.scaling.original_context_length"] = 64
    model = random_model(config_of("llama", rope_parameters=parameters), 3)
    spec = load_spec(file_of(model, **keys).write(tmp_path / "m.gguf"))
    assert spec.layers == load_spec(save(model, tmp_path / "theirs")).layers


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "falcon"}, r"architecture in \S+ is 'falcon'"),
    "no architecture": ({"general.architecture": ...}, r"general.architecture in \S+ is missing"),
    "architecture is a number": ({"general.architecture": 3}, r"is 3: expected one of llama"),
    "adapter": ({"general.type": "adapter"}, r"general.type in \S+ is 'adapter': expected 'model'"),
    "split": ({"split.count": 3}, r"split.count in \S+ is 3: .*llama-gguf-split --merge"),
    "experts": ({"llama.expert_count": 8}, r"the key llama.expert_count = 8, which"),
    "unknown key": ({"llama.new_trick": 1.5}, r"the key llama.new_trick = 1.5, which"),
    "no layers": ({"llama.block_count": ...}, r"llama.block_count in \S+ is missing"),
    "no width": ({"llama.embedding_length": ...}, r"llama.embedding_length in \S+ is missing"),
    "no context": ({"llama.context_length": ...}, r"llama.context_length in \S+ is missing"),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": ...}, r"layer_norm_rms_epsilon in \S+ is missing"
    ),
    "width is text": ({"llama.embedding_length": "x"}, r"llama.embedding_length in \S+ is 'x'"),
    "heads": ({"llama.attention.head_count": 3}, r"llama.attention.head_count_kv in \S+ is 2"),
    "heads of each layer": (
        {"llama.attention.head_count_kv": (INT32, [2, 1])}, r"expected one number, the same for all"
    ),
    "huge layers": ({"llama.block_count": 1 << 31}, r"llama.block_count in \S+ is 2147483648"),
    "no layers at all": ({"llama.block_count": 0}, r"llama.block_count in \S+ is 0"),
    "one layer too many": ({"llama.block_count": 3}, r"no tensor 'blk.2.attn_norm.weight'"),
    "one layer too few": ({"llama.block_count": 1}, r"stores 'blk.1.* and 6 more, for which"),
    "width": ({"llama.feed_forward_length": 32}, r"'blk.0.ffn_gate.weight' .* shape \(64, 32\)"),
    "value length": ({"llama.attention.value_length": 4}, r"value_length in \S+ is 4: expected 8"),
    "part of a head rotated": ({"llama.rope.dimension_count": 4}, r"dimension_count in \S+ is 4"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, r"rope.scaling.type in \S+ is 'long"),
    "scaling without factor": ({"llama.rope.scaling.type": "linear"}, r"rope.scaling.factor in"),
    "window": ({"llama.attention.sliding_window": 16}, r"llama.attention.sliding_window = 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_by_key(tmp_path: Path, llama: Any, name: str) -> None:
    changes, expected = REFUSED[name]
    path = file_of(llama, **changes).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=expected) as caught:
        load_weights(path, load_spec(path), torch.float32)
    assert str(path) in str(caught.value) and str(caught.value).endswith(".")


def test_keys_that_change_nothing_are_no_reason_to_refuse(tmp_path: Path, llama: Any) -> None:
    harmless = {
        "llama.vocab_size": VOCABULARY, "llama.rope.dimension_count": 8, "llama.expert_count": 0,
        "llama.attention.sliding_window": 0, "llama.rope.scaling.type": "none",
        "llama.attention.head_count_kv": (INT32, [2, 2]), "general.name": "x",
        "split.count": 0, "tokenizer.ggml.padding_token_id": 0,
    }  # fmt: skip
    spec = load_spec(file_of(llama, **harmless).write(tmp_path / "m.gguf"))
    assert spec.layers == load_spec(file_of(llama).write(tmp_path / "n.gguf")).layers


def test_a_model_without_embeddings_or_of_odd_parts_is_refused(tmp_path: Path, llama: Any) -> None:
    file = file_of(llama)
    tensors = dict(file.tensors)
    table = tensors.pop("token_embd.weight")
    path = file.but(tensors=tensors).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"'token_embd.weight' in \S+ is missing"):
        load_spec(path)
    flat = Stored((VOCABULARY * 32,), table.kind, table.data)
    path = file.but(tensors={**tensors, "token_embd.weight": flat}).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"'token_embd.weight' in \S+ is of shape \(8352,\)"):
        load_spec(path)
    more = {**file.tensors, "blk.0.extra.weight": dense([1.0])}
    path = file.but(tensors=more).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"stores 'blk.0.extra.weight', for which"):
        load_weights(path, load_spec(path), torch.float32)


def test_a_damaged_file_is_a_model_error(tmp_path: Path, llama: Any) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file_of(llama).content()[:-40])
    with pytest.raises(ModelError, match="ends at byte"):
        load_spec(path)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minserve.models.loading.gguf import tensors

    path = file_of(llama).write(tmp_path / "m.gguf")
    spec, opened = load_spec(path), tensors.GGUFHeaders.open

    def shrinking(self: Any, *args: Any) -> Any:
        path.write_bytes(path.read_bytes()[:-4096])
        return opened(self, *args)

    monkeypatch.setattr(tensors.GGUFHeaders, "open", shrinking)
    with pytest.raises(ModelError, match="changed while it was read"):
        load_weights(path, spec, torch.float32)


def test_two_engines_share_the_weights_of_one_file(tmp_path: Path, llama: Any) -> None:
    path = file_of(llama).write(tmp_path / "m.gguf")
    store, spec = WeightStore(), load_spec(path)
    first = store.load(path, spec, torch.float32)
    assert store.load(path, spec, torch.float32) is first
    changed = file_of(random_model(config_of("llama"), 9)).content()
    path.write_bytes(changed + b"\0" * 32)
    assert store.load(path, spec, torch.float32) is not first


def test_defaults_of_a_neighbour_are_not_a_files_own(tmp_path: Path, llama: Any) -> None:
    path = file_of(llama).write(tmp_path / "m.gguf")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.1}')
    assert load_generation_defaults(path) == {}


def test_random_metadata_runs_or_is_refused_in_a_sentence(tmp_path: Path, llama: Any) -> None:
    rng = random.Random(5)
    file = file_of(llama, **tokenizer_keys())
    odd = [each for each in NASTY if isinstance(each, (bool, str)) or each in range(99)]
    odd += [0.5, -0.0, 1e-30, 1e30, 2.0]
    odd += [["a", "b"], [], (INT32, []), (INT32, [-1, 3]), (INT32, -7), (UINT64, (1 << 63) + 1)]
    optional = ["llama.rope.scaling.type", "llama.rope.scaling.factor", "general.type",
                "split.count", "tokenizer.ggml.eot_token_id", "general.alignment",
                "tokenizer.ggml.add_bos_token", "llama.rope.dimension_count"]  # fmt: skip
    outcomes = {"ran": 0, "refused": 0}
    for _ in range(150):
        metadata = dict(file.metadata)
        for key in rng.sample([*metadata, *optional], rng.choice([1, 1, 2])):
            metadata[key] = rng.choice(odd)
        path = file.but(metadata=metadata).write(tmp_path / "m.gguf")
        try:
            with LLM(path, CONFIG, progress=False) as llm:
                llm.generate([[3, 4]], SamplingParams(max_tokens=1), progress=False)
            outcomes["ran"] += 1
        except (ModelError, TokenizerError, ConfigError) as error:
            outcomes["refused"] += 1
            assert str(error) and len(str(error)) < 1000
    assert outcomes["ran"] >= 5 and outcomes["refused"] >= 50, outcomes
