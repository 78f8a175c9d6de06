"""Every operator in plain torch: any device, any float type, and the oracle of every kernel."""

from minserve.kernels.reference.ops import TorchOps

__all__ = ["TorchOps"]
