"""The other side of the parity tests: small random transformers models, and a true float64 one.

transformers is imported inside the functions: it takes seconds, and collecting tests should not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def random_model(config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model whose every weight matters: large enough matrices that attention is
    not uniform, norms that are not one, biases that are not zero."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(seed)
    # transformers caps scores in its plain attention only.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    kind = {"attn_implementation": "eager"} if capped else {}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **kind).to(dtype).eval()
    lowest = -0.5 if config.model_type.startswith("gemma") else 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            if "norm" in name:
                drawn.uniform_(lowest, lowest + 1.0, generator=generator)
            else:
                drawn.normal_(0.0, 0.3, generator=generator)
            parameter.copy_(drawn)
    return model


def save(model: Any, directory: Path, **kwargs: Any) -> Path:
    """`save_pretrained` without its progress bar."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory, **kwargs)
    return directory


def patch_to_true_float64(model: Any) -> Any:
    """Make a float64 transformers model compute norms, rotary embedding, the scale of its
    embedding and its plain attention's softmax in float64 too.

    Left alone it takes all of them in float32, whatever the model's number format.
    """

    def norm_forward(module: Any) -> Any:
        gemma = type(module).__name__.startswith("Gemma")
        eps = module.eps if gemma else module.variance_epsilon

        def forward(x: Tensor) -> Tensor:
            variance = x.pow(2).mean(-1, keepdim=True)
            weight = 1.0 + module.weight if gemma else module.weight
            return weight * (x * torch.rsqrt(variance + eps))

        return forward

    def rotary_forward(module: Any) -> Any:
        frequencies = _float64_frequencies(module, model.config)

        def forward(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            angles = position_ids[..., None].double() * frequencies
            both = torch.cat((angles, angles), dim=-1)
            factor = module.attention_scaling
            return both.cos() * factor, both.sin() * factor

        return forward

    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = norm_forward(module)
        elif name.endswith("RotaryEmbedding"):
            module.forward = rotary_forward(module)
        elif hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
        elif name.endswith("Attention"):
            module.forward = _with_wide_softmax(module.forward)
    return model


def _with_wide_softmax(forward: Any) -> Any:
    """The attention's forward pass, in which a softmax keeps its input's number format."""

    def wide(*args: Any, **named: Any) -> Any:
        narrow = torch.nn.functional.softmax
        try:
            torch.nn.functional.softmax = lambda x, dim, dtype=None: narrow(x, dim)  # type: ignore[assignment]
            return forward(*args, **named)
        finally:
            torch.nn.functional.softmax = narrow

    return wide


def _float64_frequencies(module: Any, config: Any) -> Tensor:
    """transformers' own formula, with every `torch.float` in it read as float64."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = module.rope_type
    formula = ROPE_INIT_FUNCTIONS.get(kind, module.compute_default_rope_parameters)
    single, short = torch.float, torch.float32
    try:
        torch.float = torch.float32 = torch.float64
        frequencies, _ = formula(config)
    finally:
        torch.float, torch.float32 = single, short
    assert frequencies.dtype == torch.float64
    return frequencies


def logits(model: Any, tokens: list[int]) -> Tensor:
    """`[length, vocab_size]` of one sequence, computed at once and without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
