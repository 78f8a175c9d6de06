"""Cross-entropy of a student's distribution under its teacher's, over tied heads.

Knows hidden states and heads of both; knows nothing about networks, optimizers or data. Hinton et
al., 2015: arxiv.org/abs/1503.02531
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _DistilLoss(torch.autograd.Function):
    """Gradients computed in the forward pass, chunk by chunk, as in `net.head_loss`: the logits of
    two models for a whole batch would be 32 KB per row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        hard_share: float,
        chunk: int,
    ) -> Tensor:
        rows = hidden.shape[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = hidden.new_zeros(())
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            h, label = hidden[part], labels[part, None]
            wanted = teacher_hidden[part] @ teacher_weight.t()
            wanted.sub_(wanted.amax(-1, keepdim=True)).exp_()
            wanted.mul_((1.0 - hard_share) / wanted.sum(-1, keepdim=True))
            wanted.scatter_add_(1, label, wanted.new_full(label.shape, hard_share))
            p = h @ weight.t()
            p.sub_(p.amax(-1, keepdim=True))
            total -= torch.dot(wanted.view(-1), p.view(-1))
            p.exp_()
            norm = p.sum(-1, keepdim=True)
            total += norm.log().sum()
            p.div_(norm).sub_(wanted)
            torch.mm(p, weight, out=grad_hidden[part])
            grad_weight.addmm_(p.t(), h)
        ctx.save_for_backward(grad_hidden.div_(rows), grad_weight.div_(rows))
        return total / rows

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], *(None,) * 5


def distil_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    hard_share: float = 0.0,
    chunk: int = 128,
) -> Tensor:
    """Mean cross-entropy in nats of the student under a mixture of teacher and text.

    The target of each row is `(1 - hard_share) * teacher + hard_share * label`. `hidden` [rows,
    hidden_size] and `weight` [vocab, hidden_size] are the student's, `teacher_hidden` and
    `teacher_weight` the teacher's with its own width, `labels` [rows] the text. The teacher gets no
    gradient.
    """
    loss: Tensor = _DistilLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, teacher_hidden, teacher_weight, hard_share, chunk
    )
    return loss
