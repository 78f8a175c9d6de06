"""Runs a converted model once: it must give the recorded answer, and the recorded bits per byte.

A wrong order of rows, a wrong tokenizer or a damaged block leaves a model that loads and writes
nonsense; these two numbers notice. Knows nothing about how the directory was made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from minserve import LLM, EngineConfig, SamplingParams
from minserve.zoo.fetching import FetchError
from minserve.zoo.fetching.known import Expected

_TOLERANCE = 0.002
"""Bits per byte. Between machines they differ by a hundredth of that; the digest, not this number,
guards against other weights."""


@dataclass(frozen=True)
class Found:
    """What a model gave."""

    answer: str
    bits_per_byte: float


def run(directory: Path, expected: Expected) -> Found:
    """The greedy answer to the question, and the bits per byte of the text, in float32."""
    config = EngineConfig(device="cpu", dtype="float32").with_values(
        {"scheduling.max_model_len": 512, "memory.kv_bytes": 64 << 20}
    )
    with LLM(directory, config, progress=False) as llm:
        greedy = SamplingParams(temperature=0.0, max_tokens=32)
        chat = llm.chat([{"role": "user", "content": expected.question}], greedy, progress=False)
        ids = llm.encode(expected.text)
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        [output] = llm.generate([ids], scored, progress=False)
    entries = [entry for entry in output.prompt_logprobs or () if entry is not None]
    bits = -sum(entry.logprob for entry in entries) / math.log(2.0)
    return Found(chat.text, bits / len(expected.text.encode()))


def check(directory: Path, expected: Expected) -> Found:
    """Raise FetchError unless the model gives what is expected."""
    found = run(directory, expected)
    if found.answer != expected.answer:
        raise FetchError(
            f"The converted model answers {found.answer!r} to {expected.question!r}, expected "
            f"{expected.answer!r}: it is not kept. Please report this as a fault of minserve."
        )
    if not abs(found.bits_per_byte - expected.bits_per_byte) <= _TOLERANCE:
        raise FetchError(
            f"The converted model needs {found.bits_per_byte:.4f} bits per byte, expected "
            f"{expected.bits_per_byte:.4f}: it is not kept. Please report this as a fault of "
            "minserve."
        )
    return found
