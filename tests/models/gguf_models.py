"""Small models as GGUF files, written from what transformers holds: names, order of rows and keys
as llama.cpp's converter has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import F32, INT32, File, Stored, dense
from tokenizers import pre_tokenizers

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
CONTROL, NORMAL = 3, 1
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        number, stem = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[stem]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def adjacent(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's order: row i of a head's first half, row i of its second, and so on."""
    dim = len(weight) // heads
    order = [
        head * dim + half * (dim // 2) + pair
        for head in range(heads)
        for pair in range(dim // 2)
        for half in range(2)
    ]
    return weight[order]


def file_of(model: Any, kind: int = F32, **metadata: Any) -> File:
    """A transformers model as a GGUF file; `metadata` replaces or adds keys, ... removes one."""
    config = model.config
    kv_heads = config.num_key_value_heads
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    tensors: dict[str, Stored] = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = parameter.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            weight = adjacent(weight, config.num_attention_heads)
        elif architecture == "llama" and ".k_proj." in name:
            weight = adjacent(weight, kv_heads)
        tensors[gguf_name(name)] = dense(weight, kind if weight.ndim > 1 else F32)
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": kv_heads,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.value_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_parameters["rope_theta"],
        **metadata,
    }
    return File({key: value for key, value in keys.items() if value is not ...}, tensors)


def byte_tokens() -> list[str]:
    """The smallest byte-level vocabulary: two control tokens and the 256 bytes."""
    return ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def tokenizer_keys(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Metadata of a tokenizer of 260 tokens."""
    merges = ["h e", "l l", "he ll"]
    tokens = [*byte_tokens(), *(merge.replace(" ", "") for merge in merges)]
    keys = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges,
        "token_type": (INT32, [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2)),
        "bos_token_id": 0, "eos_token_id": 1,
    } | changes  # fmt: skip
    found = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not ...}
    return found | {"tokenizer.chat_template": TEMPLATE}


def write(path: Path, model: Any, **metadata: Any) -> Path:
    return file_of(model, **metadata).write(path)
