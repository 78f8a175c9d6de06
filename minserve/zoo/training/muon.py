"""Muon: momentum, orthogonalised by Newton-Schulz iterations, for the matrices of a network.

Knows matrices of equal shape in a stack, and their row blocks; knows nothing about which network
they come from, embeddings, norms or learning-rate schedules.

Jordan et al., 2024: kellerjordan.github.io/posts/muon
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A quintic whose iterates quickly move every singular value to between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: Tensor, steps: int = 4) -> Tensor:
    """Approximately the nearest (semi-)orthogonal matrix of each matrix in `stack`
    [n, rows, columns]."""
    a, b, c = _QUINTIC
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Updates matrices by their orthogonalised Nesterov momentum.

    `groups`: lists of (parameter, rows of each block). A parameter that holds several logical
    matrices stacked by rows (query, key, value) is orthogonalised block by block.
    """

    def __init__(
        self,
        params: Sequence[tuple[Tensor, tuple[int, ...]]],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        self.params = list(params)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.buffers = [torch.zeros_like(p) for p, _ in self.params]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the parameters' gradients. Blocks of equal shape are
        processed together."""
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for (param, rows), buffer in zip(self.params, self.buffers, strict=True):
            grad = param.grad
            if grad is None:
                raise RuntimeError("Muon.step needs a gradient on every parameter; call backward.")
            buffer.lerp_(grad, 1.0 - self.momentum)
            update = torch.lerp(grad, buffer, self.momentum)
            for block, target in zip(
                torch.split(update, list(rows)), torch.split(param, list(rows)), strict=True
            ):
                by_shape.setdefault((block.shape[0], block.shape[1]), []).append((target, block))
        for (height, width), pairs in by_shape.items():
            directions = orthogonalise(torch.stack([block for _, block in pairs]))
            scale = lr * max(1.0, height / width) ** 0.5
            for (target, _), direction in zip(pairs, directions, strict=True):
                target.mul_(1.0 - lr * self.weight_decay).sub_(direction, alpha=scale)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The momentum of every matrix, in the order of the parameters."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Load the momentum from a `state_dict`."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
