"""Writes a trained network as a complete Hugging Face directory, and reads it back.

Knows the file names and configuration fields that transformers reads; knows nothing about how the
weights were trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID, PAD_ID
from minserve.zoo.training.net import Net, NetConfig


def hf_config(config: NetConfig) -> dict[str, Any]:
    """`config.json` of a Llama of this shape, with the rotary base under its old
    and its new key."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PAD_ID,
        "dtype": "bfloat16",
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": False,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def load_net(folder: Path) -> Net:
    """The network that `export` wrote to `folder`, in float32. Raises FileNotFoundError."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no weights in {folder}: train the model first (python -m "
            "minserve.zoo.training.train), or name the directory of one that is trained."
        )
    config = json.loads((folder / "config.json").read_text())
    names = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "max_positions": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
    }
    shape = {f.name: config[names.get(f.name, f.name)] for f in dataclasses.fields(NetConfig)}
    net = Net(NetConfig(**shape))
    net.load_hf_state_dict(load_file(path))
    return net


def export(net: Net, tokenizer_folder: Path, folder: Path, curve: list[dict[str, Any]]) -> None:
    """Write `net` in bf16 with its tokenizer and its training curve. Each file appears
    completely or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", hf_config(net.config))
    generation = {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PAD_ID,
    }
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "training_curve.json", curve)
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in net.hf_state_dict().items()}
    temporary = folder / "model.safetensors.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes files readable by their owner only
    os.replace(temporary, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer_folder / name).resolve() != (folder / name).resolve():
            shutil.copyfile(tokenizer_folder / name, folder / name)
