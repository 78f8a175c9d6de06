"""The gated feed-forward block: `down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor

from minserve.kernels.base import Ops
from minserve.layers.linear import Linear


class GatedFeedForward:
    """Gate and up are one `Linear` (gate rows first), so that they are one matrix product."""

    __slots__ = ("down", "gate_up", "ops")

    def __init__(self, gate_up: Linear, down: Linear, ops: Ops) -> None:
        self.gate_up = gate_up
        self.down = down
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, hidden]` -> `[rows, hidden]`, without the residual."""
        ops = self.ops
        return self.down.apply(ops, self.gate_up.apply_gated(ops, x))
