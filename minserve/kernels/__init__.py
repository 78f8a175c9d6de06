"""Kernel optimization (Miao et al., section 4.2.5): every operator beside its torch reference."""

from minserve.kernels.base import Ops, PlannedAttention
from minserve.kernels.reference import TorchOps
from minserve.kernels.select import select_ops

__all__ = ["Ops", "PlannedAttention", "TorchOps", "select_ops"]
