"""The gated feed-forward: `down(activation(gate(x)) * up(x))` (SwiGLU and its kin, Shazeer, arXiv
2002.05202)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minserve.kernels.base import GatedTensors
from minserve.kernels.matrix import Activation, Matrix
from minserve.layers import ForwardContext, Linear
from minserve.models.blocks.base import Binding, BlockReader
from minserve.models.config_file import ConfigFile
from minserve.spec import LinearShape, Projection

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""By the names of Hugging Face."""


@dataclass(frozen=True)
class FeedForwardSpec:
    """A gated feed-forward of a width."""

    intermediate_size: int
    bias: bool = False
    activation: Activation = "silu"

    @classmethod
    def read(cls, config: ConfigFile, fixed: Mapping[str, Any]) -> FeedForwardSpec:
        """The feed-forward that a `config.json` describes; `fixed` are fields that the family's own
        code decides. Raises ModelError."""
        values = {
            "intermediate_size": config.integer("intermediate_size"),
            "bias": config.flag("mlp_bias"),
            **fixed,
        }
        # Gemma's oldest files say "gelu" and mean its approximation.
        legacy = ("gelu",) if fixed.get("activation") == "gelu_tanh" else ()
        key = "hidden_act" if config.get("hidden_activation") is None else "hidden_activation"
        given = config.get(key)
        if given is not None and given not in legacy:
            if not isinstance(given, str) or given not in _ACTIVATIONS:
                raise config.error(
                    key,
                    f"one of {', '.join(map(repr, _ACTIVATIONS))}",
                    "feed-forwards with another gate are not built",
                )
            values["activation"] = _ACTIVATIONS[given]
        return cls(**values)

    def projections(self, hidden_size: int) -> Mapping[str, Projection]:
        """See `BlockSpec.projections`. Gate and up are one matrix, gate rows first."""
        inner = self.intermediate_size
        return {
            "gate_up": Projection(LinearShape(hidden_size, (inner, inner), self.bias)),
            "down": Projection(LinearShape(inner, (hidden_size,), self.bias)),
        }

    def vector_parameters(self, hidden_size: int) -> int:
        """See `BlockSpec.vector_parameters`: none."""
        return 0

    def load(self, reader: BlockReader, hidden_size: int) -> GatedWeights:
        """See `FeedForwardBlock.load`."""
        return GatedWeights(
            gate_up=reader.matrix("gate_up", "mlp.gate_proj", "mlp.up_proj"),
            down=reader.matrix("down", "mlp.down_proj"),
        )

    def bind(self, weights: GatedWeights, binding: Binding) -> GatedFeedForward:
        """See `FeedForwardBlock.bind`."""
        return GatedFeedForward(self, weights, binding)


@dataclass(frozen=True)
class GatedWeights:
    """Two matrices."""

    gate_up: Matrix
    down: Matrix


class GatedFeedForward:
    """One layer's feed-forward, bound to one engine's operators."""

    __slots__ = ("activation", "down", "gate_up")

    def __init__(self, spec: FeedForwardSpec, weights: GatedWeights, binding: Binding) -> None:
        self.activation = spec.activation
        self.gate_up = Linear(weights.gate_up, binding.ops)
        self.down = Linear(weights.down, binding.ops)

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        """See `FeedForward.forward`."""
        return self.down.apply(context, self.gate_up.apply_gated(context, x, self.activation))

    def tensors(self) -> GatedTensors | None:
        """See `FeedForward.tensors`."""
        return GatedTensors(self.gate_up.product, self.down.product, self.activation)
