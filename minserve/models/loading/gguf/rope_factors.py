"""Llama 3's rotary scaling, which a GGUF file stores as a factor per frequency instead of its
parameters.

llama.cpp's converter knows only the factor; the other three parameters are those of every Llama 3.
So the factor is the largest stored, and the parameters are right if they give all stored factors.
"""

from __future__ import annotations

from typing import Any

import torch

from minserve.files.gguf_file import GGUFFile, GGUFTensor, mapped
from minserve.layers.rotary import inverse_frequencies
from minserve.models.errors import ModelError
from minserve.models.loading.gguf.blocks import STORED, read_numbers
from minserve.spec import RopeSpec

_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_MOST_FREQUENCIES = 1 << 13


def llama3_scaling(file: GGUFFile, factors: GGUFTensor, theta: Any) -> dict[str, Any]:
    """The `rope_scaling` of a `config.json` that stands for a tensor of factors.

    Raises ModelError if they are not those of a Llama 3.
    """
    size = factors.shape[-1]
    plain = factors.kind.name in STORED and len(factors.shape) == 1 and size <= _MOST_FREQUENCIES
    usable = type(theta) is float and 1.0 < theta < 1e15
    if plain and usable:
        with mapped(file.path) as content:
            stored = read_numbers(file.path, content, factors).float()
        largest = float(stored.max())
        if 1.0 <= largest <= 1e6:
            rope = RopeSpec(theta, "llama3", largest, _ORIGINAL, _LOW, _HIGH)
            expected = inverse_frequencies(RopeSpec(theta), 2 * size) / inverse_frequencies(
                rope, 2 * size
            )
            if torch.allclose(stored, expected, rtol=1e-3):
                return {
                    "rope_type": "llama3",
                    "factor": round(largest, 4),
                    "low_freq_factor": _LOW,
                    "high_freq_factor": _HIGH,
                    "original_max_position_embeddings": _ORIGINAL,
                }
    raise ModelError(
        f"tensor {factors.name!r} in {file.path} scales rotary frequencies its own way: expected "
        f"Llama 3's factors, for {_ORIGINAL:,} original positions; run this model with llama.cpp, "
        "or load its Hugging Face checkpoint."
    )
