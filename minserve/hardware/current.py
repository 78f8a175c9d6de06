"""The current GPU: launches and captures go there unless another device is named."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make this GPU the current one inside the block: Triton launches its kernels on the current
    GPU, wherever their tensors are, and a capture waits for no other GPU."""
    if device.type == "cpu" or device.index is None:
        return nullcontext()
    return torch.cuda.device(device)
