"""The current GPU: where launches and captures go unless another is named."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Inside the block this GPU is the current one: Triton launches its kernels there, wherever
    their tensors are, and a capture waits for no other."""
    if device.type == "cpu" or device.index is None:
        return nullcontext()
    return torch.cuda.device(device)
