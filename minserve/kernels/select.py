"""Which implementation of the operators runs, given a configuration, a device and a number type."""

from __future__ import annotations

import torch

from minserve.kernels.base import Ops
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.cpu.native import DTYPES, native_ops
from minserve.kernels.reference import TorchOps

CPU = torch.device("cpu")


def select_ops(backend: str, device: torch.device, dtype: torch.dtype) -> Ops:
    """The operators of `KernelsConfig.backend`: "torch", "native" or "auto".

    "auto" is native on a CPU where it compiles, and quietly torch everywhere else:
    `why_not_native` has the reason. Raises NativeUnavailable, in a sentence, for "native" where it
    cannot run, and ValueError for any other name.
    """
    if backend not in ("auto", "torch", "native"):
        raise ValueError(f"kernels.backend={backend!r}: choose 'auto', 'torch' or 'native'")
    if backend == "torch":
        return TorchOps()
    reason = why_not_native(device, dtype)
    if reason is None:
        return native_ops()
    if backend == "auto":
        return TorchOps()
    raise NativeUnavailable(f"kernels.backend='native' cannot run: {reason}. 'auto' takes torch")


def why_not_native(device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the native operators cannot run on this device in this number type; None if they can.

    The first call compiles them.
    """
    if device.type != "cpu":
        return f"the native operators are for a CPU, and the device is {str(device)!r}"
    if dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        return f"the native operators know {names}, and the model is in {dtype}"
    try:
        native_ops()
    except NativeUnavailable as error:
        return str(error)
    return None
