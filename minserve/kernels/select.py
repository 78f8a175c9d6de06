"""Chooses the implementation of the operators for a configuration, a device and a number type."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re

import numpy as np
import torch

from minserve.kernels.base import Ops
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.cpu.native_library import DTYPES
from minserve.kernels.reference.ops import TorchOps

CPU = torch.device("cpu")


def select_ops(backend: str, device: torch.device, dtype: torch.dtype) -> Ops:
    """The operators of `KernelsConfig.backend`: "torch", "native", "triton" or "auto".

    "auto" is native on a CPU if it compiles, Triton on a GPU that has what it needs, and torch
    otherwise, without a warning: `why_not_native` and `why_not_triton` say why. Raises
    NativeUnavailable or TritonUnavailable, with a sentence, if a named implementation cannot run,
    and ValueError for any other name.
    """
    if backend not in ("auto", "torch", "native", "triton"):
        raise ValueError(
            f"kernels.backend={backend!r}: choose 'auto', 'torch', 'native' or 'triton'"
        )
    if backend == "torch":
        return TorchOps()
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
        reason = why_not_triton(device, dtype)
        if reason is None:
            from minserve.kernels.triton import TritonOps

            return TritonOps()
        if backend == "auto":
            return TorchOps()
        raise TritonUnavailable(f"kernels.backend='triton' cannot run: {reason}. 'auto' chooses")
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


class TritonUnavailable(RuntimeError):
    """The Triton kernels cannot run here. The message says why."""


TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run on this device in this number type; None if they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return (
            f"they are for an NVIDIA GPU, and the device is {str(device)!r} (TRITON_INTERPRET=1, "
            "set before Python starts, interprets them on a CPU, slowly)"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than compute capability 8.0: they would run without matrix units"
    if dtype not in TRITON_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in TRITON_DTYPES)
        return f"they know {names}, and the model is in {dtype}"
    if interpreted and dtype is torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly: use float32 or float16"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return why_not_interpreted() if interpreted else None


def why_not_interpreted() -> str | None:
    """Why Triton's interpreter cannot run the kernels here; None if it can. Raises
    PackageNotFoundError if Triton is not installed."""
    triton = importlib.metadata.version("triton")
    if _release(triton) < (3, 7) and _release(np.__version__) >= (2, 4):
        return (
            f"the interpreter of Triton {triton} cannot loop up to a number that comes with the "
            f"launch under numpy {np.__version__}: install triton>=3.7 or numpy<2.4"
        )
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
