"""Files that contradict themselves, or transformers: the same logits, or a note that says which
one is followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import logits, random_model, save
from models.ragged import PagedSequences, run_pieces
from safetensors.torch import load_file, save_file
from tokenizer.vocabularies import byte_level
from tokenizer.vocabularies import save as save_tokenizer
from tokenizers import pre_tokenizers
from torch import Tensor

from minserve import LLM, EngineConfig
from minserve.attention.paged import PagedAttention
from minserve.kernels.reference.ops import TorchOps
from minserve.models import Decoder, ModelError, load_spec, load_weights
from minserve.tokenizer import Tokenizer

BASE: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "head_dim": 8,
}  # fmt: skip
TOKENS = [(7 * index) % 31 for index in range(40)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def directory(path: Path, family: str = "llama", **changes: Any) -> Path:
    """A model of one family with random weights, and these keys in its config.json."""
    from transformers import CONFIG_MAPPING

    save(random_model(CONFIG_MAPPING[family](**BASE), 0), path)
    edit_config(path, **{"rope_parameters": ..., **changes})
    return path


def edit_config(path: Path, **changes: Any) -> None:
    values = json.loads((path / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept))


def ours(path: Path) -> Tensor:
    spec = load_spec(path)
    weights = load_weights(path, spec, torch.float32, progress=False)
    decoder = Decoder(spec, weights, TorchOps(), max_position=48)
    paged = PagedSequences(spec, [TOKENS], len(TOKENS), 4, 0)
    backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
    [found] = run_pieces(decoder, backend, paged, paged.random_pieces(0, largest=12))
    return found


def theirs(path: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    return logits(model.eval(), TOKENS)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest, in parts of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 5e5}, "rope_theta": 7e5},
        {"rope_scaling": YARN | {"rope_theta": 3e5}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 512},
    ],
)
def test_yarn_beside_other_rotary_keys_is_on_as_in_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    path = directory(tmp_path / "model", family, **changes)
    assert load_spec(path).layers[0].mixer.rope.kind == "yarn"
    with_yarn = theirs(path)
    assert difference(ours(path), with_yarn) < 1e-4
    edit_config(path, rope_scaling=...)
    assert difference(ours(path), with_yarn) > 1e-2, "YaRN changes nothing here"


def test_the_note_names_the_base_that_is_left(tmp_path: Path) -> None:
    path = directory(tmp_path, rope_scaling=YARN, rope_parameters={"rope_theta": 5e5})
    [note] = load_spec(path).notes
    assert "rope_scaling is followed alone, as in transformers, with rope_theta=10000.0" in note
    edit_config(path, rope_parameters=...)
    assert load_spec(path).notes == ()


def test_the_single_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    path = directory(tmp_path / "model")
    expected = theirs(path)
    tensors = load_file(path / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "other.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(theirs(path), expected)
    assert difference(ours(path), expected) < 1e-4
    (path / "model.safetensors").unlink()
    assert difference(ours(path), theirs(path)) < 1e-4 < difference(ours(path), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_the_bare_decoder_loads_as_in_transformers(
    tmp_path: Path, tied: bool
) -> None:
    path = directory(tmp_path / "model", tie_word_embeddings=tied)
    tensors = load_file(path / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if not tied:
        bare["lm_head.weight"] = head
    save_file(bare, path / "model.safetensors", {"format": "pt"})
    assert difference(ours(path), theirs(path)) < 1e-4
    if not tied:
        del bare["lm_head.weight"]
        save_file(bare, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'"):
            ours(path)
    del bare["norm.weight"]
    save_file(bare, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor '(norm|lm_head)\.weight'"):
        ours(path)


@pytest.mark.parametrize("value", [False, None])
def test_a_model_that_reads_both_ways_is_refused(tmp_path: Path, value: Any) -> None:
    path = directory(tmp_path, is_causal=value)
    with pytest.raises(ModelError, match=r"is_causal in .* expected true: .*embeds text"):
        load_spec(path)
    edit_config(path, is_causal=True)
    load_spec(path)


def test_dynamic_scaling_says_in_the_configuration_that_it_differs(tmp_path: Path) -> None:
    path = directory(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    config = EngineConfig(device="cpu").with_values({"memory.kv_bytes": 1 << 20})
    with LLM(path, config, progress=False) as llm:
        [note] = [note for note in llm.config.notes if "dynamic" in note]
    assert "differs from transformers by design beyond 64 tokens" in note


def splitting_digits() -> Any:
    """As SmolLM's: digits one by one, then GPT-2's way."""
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_tokens(["12"])
    return backend


def test_a_gpt2_tokenizer_that_splits_digits_is_followed_with_a_note(tmp_path: Path) -> None:
    path = directory(tmp_path / "model")
    save_tokenizer(splitting_digits(), path, tokenizer_class="GPT2Tokenizer")
    tokenizer = Tokenizer.from_dir(path)
    assert tokenizer is not None
    assert tokenizer.encode("héllo 345") == splitting_digits().encode("héllo 345").ids
    [note] = tokenizer.notes
    assert note.startswith("tokenizer_class 'GPT2Tokenizer': tokenizer.json is followed")
    config = EngineConfig(device="cpu").with_values({"memory.kv_bytes": 1 << 20})
    with LLM(path, config, progress=False) as llm:
        assert note in llm.config.notes


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_nothing_is_noted_where_nothing_differs(tmp_path: Path, tokenizer_class: str) -> None:
    backend = byte_level() if tokenizer_class == "GPT2Tokenizer" else splitting_digits()
    tokenizer = Tokenizer.from_dir(
        save_tokenizer(backend, tmp_path, tokenizer_class=tokenizer_class)
    )
    assert tokenizer is not None and tokenizer.notes == ()
