"""Converts a Hugging Face Llama checkpoint to GGUF, for peers that read nothing else.

    python to_gguf.py MODEL_DIRECTORY OUT.gguf

Needs `gguf` and `numpy` and imports nothing of minserve, so that it runs in a peer's environment.
Matrices are written as float16. A directory without a tokenizer gets a vocabulary of placeholder
strings: enough for peers that are given token ids.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_safetensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, float32 array) of every tensor in one file."""
    import numpy as np

    raw = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", raw[:8].tobytes())
    header = json.loads(raw[8 : 8 + length].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = raw[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "BF16":
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in ("F32", "F16"):
            kind = np.float32 if entry["dtype"] == "F32" else np.float16
            values = data.view(kind).astype(np.float32)
        else:
            raise ValueError(f"{path.name}: {name} is {entry['dtype']}, expected F32, F16 or BF16")
        yield name, values.reshape(entry["shape"])


def tokenizer_of(directory: Path, vocab_size: int) -> tuple[list[str], list[str], set[str]]:
    """(tokens, merges, control tokens): the directory's byte-level BPE, or placeholders."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return placeholder_tokenizer(vocab_size)
    stored = json.loads(path.read_text(encoding="utf-8"))
    by_id = sorted(stored["model"]["vocab"].items(), key=lambda entry: entry[1])
    tokens = [token for token, _ in by_id]
    tokens += [f"<|{index}|>" for index in range(len(tokens), vocab_size)]
    merges = [
        " ".join(merge) if isinstance(merge, list) else merge for merge in stored["model"]["merges"]
    ]
    return tokens, merges, {entry["content"] for entry in stored.get("added_tokens", [])}


def placeholder_tokenizer(vocab_size: int) -> tuple[list[str], list[str], set[str]]:
    """A byte-level BPE without meaning: two control tokens, the bytes, then pairs of them.

    Peers build a tokenizer before they serve token ids, and refuse a missing vocabulary.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # GPT-2's alphabet: bytes without a printable character of their own are moved up.
    alphabet = [chr(byte) for byte in printable] + [chr(256 + shift) for shift in range(68)]
    tokens, merges = ["<|end|>", "<|pad|>", *alphabet], []
    for first in alphabet:
        for second in alphabet:
            if len(tokens) < vocab_size:
                tokens.append(first + second)
                merges.append(f"{first} {second}")
    tokens += [f"<|{index}|>" for index in range(len(tokens), vocab_size)]
    return tokens[:vocab_size], merges, {"<|end|>", "<|pad|>"}


def interleave_halves(weight: Any, heads: int) -> Any:
    """Rows of a query or key projection in the order of GGUF's Llama, where the two rows of a
    rotary pair are adjacent."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def convert(directory: Path, target: Path) -> None:
    """Write `target`. Raises ValueError for anything but a Llama without biases."""
    import numpy as np

    gguf = importlib.import_module("gguf")

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"{config['model_type']}: only a Llama without biases can be converted")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError("a Llama with a rope scaling cannot be converted")
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens, merges, control = tokenizer_of(directory, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if t in control else kinds.NORMAL for t in tokens])
    writer.add_bos_token_id(_first_id(config.get("bos_token_id")))
    writer.add_eos_token_id(_first_id(config.get("eos_token_id")))
    writer.add_pad_token_id(_first_id(config.get("pad_token_id")))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for path in sorted(directory.glob("*.safetensors")):
        for name, weight in read_safetensors(path):
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            if name.endswith("q_proj.weight"):
                weight = interleave_halves(weight, heads)
            elif name.endswith("k_proj.weight"):
                weight = interleave_halves(weight, kv_heads)
            kind = np.float16 if weight.ndim > 1 else np.float32
            stored = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(stored, np.ascontiguousarray(weight.astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _first_id(value: int | list[int] | None) -> int:
    if isinstance(value, list):
        return value[0]
    return 0 if value is None else value


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: to_gguf.py MODEL_DIRECTORY OUT.gguf")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
