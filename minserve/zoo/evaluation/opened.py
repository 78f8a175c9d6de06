"""A model directory opened with transformers, whose arithmetic defines the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from minserve.zoo.evaluation.score import LogitsOf


@dataclass(frozen=True)
class OpenedModel:
    """A model directory, opened with transformers for the CPU in float32."""

    tokenizer: Tokenizer
    logits_of: LogitsOf
    hf_model: Any


def open_model(folder: Path) -> OpenedModel:
    """Open a Hugging Face directory. The weights are bf16; the arithmetic here is float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from minserve.zoo.corpus.tokenizer import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits

    return OpenedModel(load_tokenizer(folder), logits_of, model)
