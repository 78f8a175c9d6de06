"""The operators as Triton kernels: one idea per file; the torch reference is their oracle.

They run on NVIDIA GPUs of compute capability 8.0 and up. `TRITON_INTERPRET=1` runs them on a CPU,
slowly, which is how they are tested without a GPU. Importing this package imports Triton.
"""

from minserve.kernels.triton.ops import TritonOps

__all__ = ["TritonOps"]
