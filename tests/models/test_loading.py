"""The loader: what it reads, what it refuses and how it says so, and who shares weights."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import random_model, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from minserve.models import (
    ModelError,
    WeightStore,
    load_generation_defaults,
    load_spec,
    load_weights,
    random_weights,
    resolve_model,
)
from minserve.models.weights import DecoderWeights

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untied Llama, as save_pretrained writes it, without a tokenizer."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True, eos_token_id=7,
    )  # fmt: skip
    return save(random_model(config, 0), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """The same directory, to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_config(directory: Path, **changes: Any) -> Path:
    """Set keys of config.json; ... removes one."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return directory


def edit_weights(directory: Path, edit: Edit) -> Path:
    """Rewrite model.safetensors after `edit` changed the dict of tensors."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    return load_weights(directory, load_spec(directory), dtype, progress=False)


def all_tensors(weights: DecoderWeights) -> list[Tensor]:
    """Every tensor of a dense model, in a fixed order."""
    matrices, norms = [weights.head], [weights.final_norm]
    for layer in weights.layers:
        mixer, feed_forward = layer.mixer, layer.feed_forward
        matrices += [mixer.qkv, mixer.output, feed_forward.gate_up, feed_forward.down]
        norms += [layer.input_norm, layer.post_norm]
        norms += [norm for norm in (mixer.q_norm, mixer.k_norm) if norm is not None]
    found = [weights.embedding.table.codes, *(norm.weight for norm in norms)]
    for matrix in matrices:
        found += [part for part in (matrix.codes, matrix.bias) if part is not None]
    return found


def assert_same(ours: DecoderWeights, theirs: DecoderWeights) -> None:
    for one, other in zip(all_tensors(ours), all_tensors(theirs), strict=True):
        assert torch.equal(one, other)


def test_fused_projections_hold_the_stored_rows_in_order(llama: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    layer = load(llama).layers[1]
    prefix = "model.layers.1."
    qkv = layer.mixer.qkv
    parts = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
    assert torch.equal(qkv.codes, torch.cat([stored[f"{part}.weight"] for part in parts]))
    assert torch.equal(qkv.bias, torch.cat([stored[f"{part}.bias"] for part in parts]))
    gate_up = layer.feed_forward.gate_up
    parts = [f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up")]
    assert torch.equal(gate_up.codes, torch.cat([stored[part] for part in parts]))


def test_bytes_and_parameters_are_those_of_the_spec(llama: Path) -> None:
    spec = load_spec(llama)
    weights = load(llama)
    assert weights.nbytes == 4 * spec.num_parameters()
    assert weights.nbytes == sum(tensor.nbytes for tensor in all_tensors(weights))
    assert load(llama, torch.bfloat16).nbytes == 2 * spec.num_parameters()


def test_sharded_checkpoint_loads_as_the_whole_one(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    sharded = save(model, tmp_path / "sharded", max_shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_same(load(sharded), load(llama))


def test_conversion_happens_once_per_tensor(copy: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    edit_weights(copy, halve)
    for ours, theirs in zip(
        all_tensors(load(copy)), all_tensors(load(copy, torch.bfloat16)), strict=True
    ):
        assert torch.equal(ours, theirs.float())


def test_weights_do_not_change_when_the_file_does(copy: Path, llama: Path) -> None:
    weights = load(copy)
    size = (copy / "model.safetensors").stat().st_size
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    assert_same(weights, load(llama))


def test_pickle_only_checkpoint_is_refused_with_the_way_to_convert_it(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*any code.*save_pretrained"):
        load(copy)


def test_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load(copy)


def test_missing_shard_is_named(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    sharded = save(model, tmp_path / "sharded", max_shard_size="8KB")
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=f"lacks {gone.name}"):
        load(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "model.bin"])
def test_index_cannot_reach_outside_or_at_pickles(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"expected \.safetensors files beside it"):
        load(copy)


DAMAGES: list[tuple[Edit, str]] = [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
     r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"),
    (lambda t: t.pop("lm_head.weight"), r"no tensor 'lm_head\.weight'"),
    (lambda t: t.update({"model.norm.weight": torch.ones(17)}),
     r"'model\.norm\.weight'.*\(17,\).*\(16,\)"),
    (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(4)}),
     r"stores 'model\.layers\.0\.self_attn\.q_norm\.weight'"),
    (lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}),
     r"'model\.norm\.weight'.*stored as I8.*unquantized"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_damaged_checkpoint_is_refused_by_tensor(copy: Path, damage: Edit, sentence: str) -> None:
    edit_weights(copy, damage)
    with pytest.raises(ModelError, match=sentence):
        load(copy)


def test_buffers_of_old_checkpoints_are_no_surprise(copy: Path, llama: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(copy, lambda tensors: tensors.update({name: torch.ones(2)}))
    assert_same(load(copy), load(llama))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x10\x00\x00\x00", "not a readable safetensors file"),
        (b"", "not a readable safetensors file"),
    ],
)
def test_unreadable_file_is_explained(copy: Path, content: bytes, sentence: str) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        load(copy)


def test_tied_head_loads_whether_or_not_it_is_stored(copy: Path) -> None:
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    edit_config(copy, tie_word_embeddings=True)
    edit_weights(copy, lambda tensors: tensors.update({head: tensors[table].clone()}))
    both = load(copy)
    edit_weights(copy, lambda tensors: tensors.pop(head))
    table_only = load(copy)
    edit_weights(copy, lambda tensors: tensors.update({head: tensors.pop(table)}))
    head_only = load(copy)
    for weights in (both, table_only, head_only):
        assert_same(weights, both)
        assert weights.head.codes.data_ptr() == weights.embedding.table.codes.data_ptr()
        assert weights.nbytes == 4 * load_spec(copy).num_parameters()


def test_tied_head_that_differs_from_the_embedding_is_refused(copy: Path) -> None:
    edit_config(copy, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="set tie_word_embeddings to false"):
        load(copy)


def test_two_loads_share_weights_and_the_last_one_frees_them(llama: Path, tmp_path: Path) -> None:
    store, spec = WeightStore(), load_spec(llama)
    one = store.load(llama, spec, torch.float32)
    link = tmp_path / "link"
    link.symlink_to(llama)
    two = store.load(str(link), load_spec(link), torch.float32, "cpu")
    assert two is one and len(store) == 1
    assert store.load(llama, spec, torch.float64) is not one
    del one
    gc.collect()
    assert len(store) == 1
    del two
    gc.collect()
    assert len(store) == 0


def test_changed_file_is_loaded_anew(copy: Path) -> None:
    store = WeightStore()
    one = store.load(copy, load_spec(copy), torch.float32)
    edit_weights(copy, lambda tensors: tensors["model.norm.weight"].add_(1.0))
    two = store.load(copy, load_spec(copy), torch.float32)
    assert not torch.equal(one.final_norm.weight, two.final_norm.weight)


def test_threads_that_load_at_once_get_one_copy(llama: Path) -> None:
    store, spec, found = WeightStore(), load_spec(llama), []
    threads = [
        threading.Thread(target=lambda: found.append(store.load(llama, spec, torch.float32)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({id(weights) for weights in found}) == 1


def test_random_weights_have_the_shapes_of_a_checkpoint_and_repeat(llama: Path) -> None:
    spec = load_spec(llama)
    drawn, stored = random_weights(spec, torch.float32, seed=3), load(llama)
    for one, other in zip(all_tensors(drawn), all_tensors(stored), strict=True):
        assert one.shape == other.shape
    assert_same(drawn, random_weights(spec, torch.float32, seed=3))


def test_loading_writes_nothing_to_stdout(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_weights(llama, load_spec(llama), torch.float32, progress=True)
    assert capsys.readouterr().out == ""


def test_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "nowhere", "./org/name", "zoo/nowhere", "a/b/c"):
        with pytest.raises(ModelError, match=r"no model.*expected a directory"):
            resolve_model(name)
    gguf = tmp_path / "model.gguf"
    for name in (gguf, "org/model.gguf"):
        with pytest.raises(ModelError, match=r"no model .*model\.gguf': there is no such file"):
            resolve_model(name)
    gguf.touch()
    assert resolve_model(gguf) == gguf
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ModelError, match="is a file: give the Hugging Face directory"):
        resolve_model(file)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_spec(tmp_path)


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    return getattr(errors, name).__new__(getattr(errors, name))


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("GatedRepoError", "gated model: accept its terms"),
        ("RepositoryNotFoundError", "check the spelling"),
        ("LocalEntryNotFoundError", "could not be reached"),
        ("OfflineModeIsEnabled", "could not be reached"),
        ("HFValidationError", "no hub name"),
    ],
)
def test_hub_errors_become_sentences(
    monkeypatch: pytest.MonkeyPatch, raised: str, sentence: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise hub_error(raised)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=sentence):
        resolve_model("org/name")


def test_hub_download_takes_no_pickles(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_spec("org/name") == load_spec(llama)
    assert asked["name"] == "org/name"
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in asked["allow_patterns"])


def test_generation_config_gives_end_tokens_and_sampling_defaults(copy: Path) -> None:
    path = copy / "generation_config.json"
    path.unlink(missing_ok=True)
    assert load_generation_defaults(copy) == {}
    assert load_spec(copy).eos_token_ids == (7,)
    path.write_text(
        json.dumps(
            {"eos_token_id": [5, 6, 5], "temperature": 0.6, "top_k": None, "use_cache": True}
        )
    )
    assert load_generation_defaults(copy) == {"temperature": 0.6}
    assert load_spec(copy).eos_token_ids == (5, 6)


LONG_NAMES = ["x" * 5000, "zoo/" + "x" * 5000, "a/" * 3000, "a" * 200 + "/" + "b" * 50]
IMPOSSIBLE_NAMES = [*LONG_NAMES, "a\0b", "\ud800", "~no-such-user/x"]


@pytest.mark.parametrize("name", IMPOSSIBLE_NAMES, ids=lambda name: ascii(name[:6]))
def test_a_name_that_no_file_can_have_is_a_sentence(name):
    from minserve.loading import find_model

    for find in (resolve_model, find_model):
        with pytest.raises(ModelError, match="no model") as caught:
            find(name)
        assert len(str(caught.value)) < 400
