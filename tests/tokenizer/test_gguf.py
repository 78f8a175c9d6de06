"""Tokenizers in GGUF files: the same ids as the tokenizer they were written from, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import ARRAY, INT32, STRING, UINT32, File
from models.gguf_models import CONTROL, NORMAL, TEMPLATE, byte_tokens, tokenizer_keys
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from minserve.tokenizer import Tokenizer, TokenizerError

USER_DEFINED = 4
TEXTS = [
    "I have 1234 apples, don't you?", "  two  spaces\n\n\ttab  ", "héllo wörld 你好 😀",
    "x=1;y+=22",
    "WE'LL see_it \r\n end", "e\u0301 decomposed", "<s>hell</s> <tool>", "",
    "\u00a0\u2028", "'S 'T",
]  # fmt: skip
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""From tokenizer.json of Llama 3; Qwen 2's has single digits."""


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
AS_PUBLISHED: dict[str, Any] = {
    "gpt-2": PLAIN,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN]),
    "llama-bpe": split_by(LLAMA3),
    "qwen2": split_by(LLAMA3.replace("{1,3}", "")),
}
"""The pre-tokenizer in each family's own tokenizer.json."""


def trained(pre: str) -> Backend:
    backend = Backend(models.BPE(ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = AS_PUBLISHED[pre]
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, "1234 12 34 apples apples don't we'll"] * 5, trainer)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


def metadata_of(backend: Backend, pre: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of a tokenizer."""
    described = json.loads(backend.to_str())
    tokens = [backend.id_to_token(number) for number in range(backend.get_vocab_size())]
    merges = [" ".join(merge) for merge in described["model"]["merges"]]
    kinds = {"<s>": CONTROL, "</s>": CONTROL, "<tool>": USER_DEFINED}
    types = (INT32, [kinds.get(token, NORMAL) for token in tokens])
    return tokenizer_keys(pre, tokens=tokens, merges=merges, token_type=types, add_bos_token=False)


def read(path: Path, metadata: dict[str, Any]) -> Tokenizer | None:
    return Tokenizer.from_dir(File(metadata).write(path / "m.gguf"))


@pytest.mark.parametrize("pre", AS_PUBLISHED)
def test_ids_and_texts_are_those_of_the_original(tmp_path: Path, pre: str) -> None:
    original = trained(pre)
    ours = read(tmp_path, metadata_of(original, pre))
    assert ours is not None and ours.vocab_size == original.get_vocab_size()
    for text in TEXTS:
        ids = original.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == original.decode(ids)
    assert ours.special_ids == {0, 1}
    assert ours.decode([0, *ours.encode("hello"), 1]) == "hello"


def test_the_families_split_texts_in_different_ways(tmp_path: Path) -> None:
    tokens = [*byte_tokens(), "12", "123", "1234", "Ġ1"]
    merges = ["1 2", "12 3", "123 4", "Ġ 1"]
    keys = {"tokens": tokens, "merges": merges, "token_type": ..., "add_bos_token": False}
    pieces = {}
    for pre in AS_PUBLISHED:
        ours = read(tmp_path, tokenizer_keys(pre, **keys))
        assert ours is not None
        pieces[pre] = [ours.token_text(token) for token in ours.encode("1234 1")]
    assert pieces == {
        "gpt-2": ["1234", "Ġ1"],
        "smollm": ["1", "2", "3", "4", "Ġ", "1"],
        "llama-bpe": ["123", "4", "Ġ", "1"],
        "qwen2": ["1", "2", "3", "4", "Ġ", "1"],
    }


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [
        ("gpt-2", {}, [260]),
        ("gpt-2", {"add_bos_token": True}, [0, 260]),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, [0, 260, 1]),
        ("llama-bpe", {}, [0, 260]),
        ("llama-bpe", {"add_bos_token": False}, [260]),
        ("gpt-2", {"add_bos_token": True, "bos_token_id": ...}, [260]),
    ],
)
def test_bos_and_eos_are_added_where_the_file_says_so(
    tmp_path: Path, pre: str, flags: dict[str, Any], expected: list[int]
) -> None:
    ours = read(tmp_path, tokenizer_keys(pre, **flags))
    assert ours is not None
    assert ours.encode("hell") == expected
    assert ours.encode("hell", add_special_tokens=False) == [260]


def test_chat_templates_and_roles_come_from_the_metadata(tmp_path: Path) -> None:
    keys = tokenizer_keys(unknown_token_id=0, padding_token_id=1)
    ours = read(tmp_path, keys | {"tokenizer.chat_template.tool_use": "tools!"})
    assert ours is not None
    assert ours.chat_templates == {"default": TEMPLATE, "tool_use": "tools!"}
    assert ours.apply_chat_template([{"role": "user", "content": "x"}]) == "<user>x</s>"
    assert ours.special_tokens == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>", "pad_token": "</s>",
    }  # fmt: skip
    assert (ours.bos_token_id, ours.eos_token_id) == (0, 1)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, {"general.architecture": "llama"}) is None


TOKENS = byte_tokens()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "SentencePiece": ({"model": "llama"}, r"ggml.model in \S+ is 'llama': expected 'gpt2'"),
    "unknown pre-tokenizer": ({"pre": "tekken"}, r"tokenizer.ggml.pre in \S+ is 'tekken': expected "
                              r"one of gpt-2, smollm"),
    "no pre-tokenizer": ({"pre": ...}, r"tokenizer.ggml.pre in \S+ is missing: expected"),
    "pre-tokenizer is a number": ({"pre": 3}, r"tokenizer.ggml.pre in \S+ is 3"),
    "no tokens": ({"tokens": ...}, r"tokenizer.ggml.tokens in \S+ is missing"),
    "empty tokens": ({"tokens": [], "token_type": ...}, r"tokenizer.ggml.tokens in \S+ is \[\]"),
    "tokens are numbers": ({"tokens": (INT32, [1])}, r"tokens in .*: expected an array of strings"),
    "tokens are one text": ({"tokens": "abc"}, r"tokens in .*: expected an array of strings"),
    "token twice": (
        {"tokens": [*TOKENS, "<s>"], "token_type": ...}, r"each token once, and '<s>' is"
    ),
    "too few types": ({"token_type": (INT32, [1])}, r"token_type in .*: expected 261 types"),
    "types are texts": ({"token_type": ["x"]}, r"token_type in .*: expected an array of integers"),
    "unknown type": ({"token_type": (INT32, [9] * 261)}, r"expected types 1 to 6, not 9"),
    "no merges": ({"merges": ...}, r"tokenizer.ggml.merges in \S+ is missing"),
    "merge of one": ({"merges": ["he"]}, r"two parts and a space between, not 'he'"),
    "merge of three": ({"merges": ["h e l"]}, r"two parts and a space between, not 'h e l'"),
    "merge of strangers": ({"merges": ["h €"]}, r"is none that `tokenizers` can use"),
    "end outside": ({"eos_token_id": 999}, r"eos_token_id in \S+ is 999: expected a token below"),
    "end is text": ({"eos_token_id": "x"}, r"eos_token_id in \S+ is 'x'"),
    "flag is a number": ({"add_bos_token": 1}, r"add_bos_token in \S+ is 1: expected true or"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_key(tmp_path: Path, name: str) -> None:
    changes, expected = REFUSED[name]
    with pytest.raises(TokenizerError, match=expected) as caught:
        read(tmp_path, tokenizer_keys(**changes))
    assert "m.gguf" in str(caught.value) and str(caught.value).endswith(".")


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.chat_template in .*: expected a jinja2"):
        read(tmp_path, tokenizer_keys() | {"tokenizer.chat_template": (UINT32, 1)})


def test_lists_within_lists_are_no_tokens(tmp_path: Path) -> None:
    import struct

    inner = struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", STRING, 0)
    with pytest.raises(TokenizerError, match=r"tokens in .*: expected an array of strings"):
        read(tmp_path, tokenizer_keys() | {"tokenizer.ggml.tokens": inner})
