"""Named model shapes, and checkpoints of them with random weights: for speed, never for quality.

A shape is data, so that work can be counted without making weights; a checkpoint is a Hugging Face
directory that the engine and every peer can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec, RopeSpec


@dataclass(frozen=True)
class Shape:
    """A dense decoder's dimensions, in the names of Hugging Face's configurations."""

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    rope_theta: float
    tie_embeddings: bool
    norm_eps: float = 1e-6
    dtype: str = "float32"
    source: str = ""

    def spec(self) -> ModelSpec:
        """The shape as the engine's `ModelSpec`."""
        attention = AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            qk_norm=self.model_type == "qwen3",
            rope=RopeSpec(theta=self.rope_theta),
        )
        layer = LayerSpec(attention, FeedForwardSpec(self.intermediate_size))
        return ModelSpec(
            family=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=(layer,) * self.num_layers,
            norm_eps=self.norm_eps,
            max_position=self.max_position,
            tie_embeddings=self.tie_embeddings,
            dtype=self.dtype,
        )

    def hf_config(self) -> Any:
        """The shape as transformers' `PretrainedConfig`."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
            rms_norm_eps=self.norm_eps,
            # Benchmarks have fixed lengths; no token may end or pad a text by accident.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("trial", "llama", 4096, 256, 8, 8, 4, 32, 672, 1024, 1e4, True,
              source="the shape of this lab's first trained model"),
        Shape("qwen3-0.6b", "qwen3", 151_936, 1024, 28, 16, 8, 128, 3072, 40_960, 1e6, True,
              dtype="bfloat16", source="Qwen/Qwen3-0.6B, config.json"),
        Shape("llama-3.1-8b", "llama", 128_256, 4096, 32, 32, 8, 128, 14_336, 131_072, 5e5, False,
              norm_eps=1e-5, dtype="bfloat16",
              source="meta-llama/Llama-3.1-8B, config.json (its rope scaling left out)"),
        Shape("llama-2-7b", "llama", 32_000, 4096, 32, 32, 32, 128, 11_008, 4096, 1e4, False,
              norm_eps=1e-5, dtype="float16", source="meta-llama/Llama-2-7b-hf, config.json"),
    )
}  # fmt: skip


def write_checkpoint(shape: Shape, directory: str | Path, seed: int = 0) -> Path:
    """Write a checkpoint with random weights to `directory`; returns the directory.

    Weights are drawn as transformers initialises them and rounded so that float32, bfloat16 and
    float16 hold the same values: a race at any precision uses the same model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    path = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(shape.hf_config(), dtype=torch.float32)
    with torch.no_grad():
        for weight in network.parameters():
            rounded = weight.bfloat16().float()
            # Below float16's smallest normal number precision is lost.
            weight.copy_(torch.where(rounded.abs() < 2.0**-14, 0.0, rounded))
    network.generation_config = type(network.generation_config)()
    logging.disable_progress_bar()
    network.to(getattr(torch, shape.dtype)).save_pretrained(path)
    return path
