"""Kernel optimization (Miao et al., section 3.2.5): every operator beside its torch reference."""

from minserve.kernels.base import Ops, PlannedAttention
from minserve.kernels.cpu.build import NativeUnavailable
from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.select import (
    TritonUnavailable,
    select_ops,
    why_not_interpreted,
    why_not_native,
    why_not_triton,
)

__all__ = [
    "NativeUnavailable",
    "Ops",
    "PlannedAttention",
    "TorchOps",
    "TritonUnavailable",
    "select_ops",
    "why_not_interpreted",
    "why_not_native",
    "why_not_triton",
]
