"""A model to ask about, cases of rules, and a GPU that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from minserve.config import EngineConfig, Facts
from minserve.config.question import Rule
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

MODEL = ModelSpec(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    layers=(LayerSpec(AttentionSpec(4, 2, 16), FeedForwardSpec(128)),) * 3,
    norm_eps=1e-5,
    max_position=1024,
    tie_embeddings=True,
    dtype="bfloat16",
)

_WINDOWED = LayerSpec(AttentionSpec(4, 2, 16, window=48), FeedForwardSpec(128))
WINDOWS = replace(MODEL, layers=(_WINDOWED,) * 3)
MIXED = replace(MODEL, layers=(MODEL.layers[0], _WINDOWED) * 2)
"""Models in which every layer has a window, and every second one."""

PAGE_BYTES = 16 * 3 * 2 * 2 * 16 * 4
"""Of MODEL in float32."""


def config_of(values: Mapping[str, object]) -> EngineConfig:
    """On a CPU in float32, unless `values` say otherwise."""
    return EngineConfig(device="cpu", dtype="float32").with_values(values)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    """One GPU of this compute capability, or none, as far as torch's answers go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@dataclass(frozen=True)
class Case:
    """One configuration, and the rule that has something to say about it."""

    rule: Rule
    values: dict[str, Any]
    says: tuple[str, ...] = ()
    """Parts of the refusal, or of the notes, in this order."""
    fills: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    gpu: tuple[int, int] | None = None
    """Compute capability of the GPU that torch says it sees; None: it sees none."""
    model: ModelSpec = MODEL
