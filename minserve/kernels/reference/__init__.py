"""Every operator in plain torch: any device, any float type, and the oracle of every kernel."""

from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.reference.product import DenseProduct

__all__ = ["DenseProduct", "TorchOps"]
