"""Directories of every sort load, and encode as transformers' AutoTokenizer does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizer.vocabularies import BOS, EOS, KINDS, TEXT, byte_level, save, starting_with_bos

from minserve.request import InvalidRequestError
from minserve.tokenizer import Tokenizer, TokenizerError

SAMPLES = [
    *TEXT[:3],
    "",
    " ",
    " ab",
    "ab  a",
    f"{BOS}a{EOS}",
    "a<think> b",
    "<pad>x<extra>",
    "\n\n  é\u0301",
]
ADDED = {"content": "<extra>", "special": False, "lstrip": True, "normalized": False}
CONFIGS = {
    "plain": {},
    "adds BOS": {"add_bos_token": True},
    "adds both": {"add_bos_token": True, "add_eos_token": True},
    "adds none": {"add_bos_token": False},
    "more tokens": {"pad_token": "<pad>", "additional_special_tokens": ["<think>", "<tool>"]},
    "listed tokens": {"added_tokens_decoder": {"900": ADDED}},
    "splits special tokens": {"split_special_tokens": True},
    "Llama": {"tokenizer_class": "LlamaTokenizer"},
    "older Llama": {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    "Llama without prefix": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
}
ENCODINGS = ["byte-level", "byte fallback, first space stripped", "metaspace"]


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("post_processor", [True, False])
def test_ids_and_texts_are_those_of_transformers(kind, config, post_processor, tmp_path):
    from transformers import AutoTokenizer

    backend = KINDS[kind]()
    path = save(
        starting_with_bos(backend) if post_processor else backend, tmp_path, **CONFIGS[config]
    )
    ours, theirs = Tokenizer.from_dir(path), AutoTokenizer.from_pretrained(path)
    assert ours is not None
    for text in SAMPLES:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


def test_padding_and_truncation_of_a_training_script_are_ignored(tmp_path):
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    path = save(backend, tmp_path)
    text = TEXT[1]
    assert Tokenizer.from_dir(path).decode(Tokenizer.from_dir(path).encode(text)) == text


def test_special_tokens_map_alone_names_the_roles(tmp_path):
    path = save(byte_level(), tmp_path)
    (path / "tokenizer_config.json").unlink()
    (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": EOS}}))
    tokenizer = Tokenizer.from_dir(path)
    assert tokenizer.eos_token_id == tokenizer.encode(EOS)[0] and tokenizer.bos_token_id is None


def test_a_directory_without_a_tokenizer_has_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.from_dir(tmp_path) is None


def test_older_files_are_converted_by_transformers(tmp_path):
    backend = byte_level()
    content = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in content["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": EOS, "bos_token": BOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode(TEXT[1]) == backend.encode(TEXT[1]).ids
    assert tokenizer.token_text(tokenizer.eos_token_id) == EOS


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_broken_file_is_refused_with_a_sentence(name, tmp_path):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)


def test_broken_settings_are_refused_with_a_sentence(tmp_path):
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read as JSON"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("prompt", ["\ud800", None, 5, ["a"]])
def test_what_is_not_text_is_refused_with_a_sentence(prompt):
    with pytest.raises(InvalidRequestError, match="token ids"):
        Tokenizer(byte_level()).encode(prompt)


def test_loading_imports_neither_torch_nor_transformers(tmp_path):
    path = save(byte_level(), tmp_path)
    program = (
        "import sys; from minserve.tokenizer.tokenizer import Tokenizer;"
        f"Tokenizer.from_dir({str(path)!r}).encode('abc');"
        "print(sorted({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
