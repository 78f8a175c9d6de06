"""Unquantized weights, in the number type in which they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minserve.kernels.matrix import Matrix
from minserve.quantization.formats.base import ShardDim, TensorSource, read_parts, shard_tensor
from minserve.spec import LinearShape


@dataclass(frozen=True)
class DenseFormat:
    """Every part of a fused projection is copied into its rows of one matrix."""

    name: ClassVar[str] = "dense"
    kind: ClassVar[str] = "dense"

    def matrix_bytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        """See `Storage.matrix_bytes`."""
        return outputs * inputs * itemsize

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Matrix:
        """See `WeightFormat.load`. The matrix is allocated first and filled part by part, so that a
        fused matrix never exists twice in memory."""
        codes = empty_matrix(shape.outputs, shape.inputs, dtype, device)
        for rows, weight in read_parts(shape, sources):
            codes[rows].copy_(weight)
        return Matrix(self, shape.outputs, shape.inputs, dtype, codes)

    def dequantise(self, matrix: Matrix) -> Tensor:
        """See `MatrixFormat.dequantise`: the numbers as they are."""
        return matrix.codes

    def rows(self, matrix: Matrix, codes: Tensor, indices: Tensor) -> Tensor:
        """See `MatrixFormat.rows`."""
        return codes

    def shard(
        self, matrix: Matrix, shape: LinearShape, rank: int, world: int, dim: ShardDim
    ) -> Matrix:
        """See `WeightFormat.shard`."""
        codes = shard_tensor(matrix.codes, shape, rank, world, dim)
        outputs, inputs = codes.shape
        kept = empty_matrix(outputs, inputs, matrix.dtype, matrix.device).copy_(codes)
        return Matrix(self, outputs, inputs, matrix.dtype, kept)


def empty_matrix(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised `[outputs, inputs]` in the memory order that torch multiplies fastest.

    On a CPU in float32 and float64 that is input-major, a transposed view: MKL then multiplies 16
    to 63 rows, the usual decode batch, 2.5 to 8 times as fast (256 wide, 2 threads of an Ice Lake
    Xeon, torch 2.13), and other numbers of rows equally fast.
    """
    if device.type == "cpu" and dtype in (torch.float32, torch.float64):
        return torch.empty(inputs, outputs, dtype=dtype, device=device).t()
    return torch.empty(outputs, inputs, dtype=dtype, device=device)


DENSE = DenseFormat()
