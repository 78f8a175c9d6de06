"""INT8 with one scale per output channel: weights are rounded to nearest, activations are not.

`weight = code * scale` with codes from -127 to 127; a product sums `code * x`, and multiplies each
sum by its output's scale (LLM.int8()'s vector-wise weights, Dettmers et al., arXiv 2208.07339,
section 3, without its activations and outliers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minserve.kernels.matrix import Matrix
from minserve.quantization.formats.base import ShardDim, TensorSource, read_parts, shard_tensor
from minserve.spec import LinearShape

LARGEST = 127


@dataclass(frozen=True)
class Int8Format:
    """One byte per weight, and a float32 scale per output."""

    name: ClassVar[str] = "int8"
    kind: ClassVar[str] = "int8"

    def matrix_bytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        """See `Storage.matrix_bytes`."""
        return outputs * inputs + 4 * outputs

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Matrix:
        """See `WeightFormat.load`: each part is rounded when it is read."""
        codes = torch.empty(shape.outputs, shape.inputs, dtype=torch.int8, device=device)
        scales = torch.empty(shape.outputs, dtype=torch.float32, device=device)
        for rows, weight in read_parts(shape, sources):
            codes[rows], scales[rows] = round_to_nearest(weight.to(device))
        return Matrix(self, shape.outputs, shape.inputs, dtype, codes, scales)

    def dequantise(self, matrix: Matrix) -> Tensor:
        """See `MatrixFormat.dequantise`."""
        return self._numbers(matrix, matrix.codes, self._scales(matrix))

    def rows(self, matrix: Matrix, codes: Tensor, indices: Tensor) -> Tensor:
        """See `MatrixFormat.rows`."""
        return self._numbers(matrix, codes, self._scales(matrix)[indices])

    def shard(
        self, matrix: Matrix, shape: LinearShape, rank: int, world: int, dim: ShardDim
    ) -> Matrix:
        """See `WeightFormat.shard`: columns keep the scale of their whole output."""
        codes = shard_tensor(matrix.codes, shape, rank, world, dim)
        scales = self._scales(matrix)
        scales = scales.clone() if dim == "input" else shard_tensor(scales, shape, rank, world, dim)
        outputs, inputs = codes.shape
        return Matrix(self, outputs, inputs, matrix.dtype, codes, scales)

    @staticmethod
    def _scales(matrix: Matrix) -> Tensor:
        assert matrix.scales is not None, "load gives every matrix its scales"
        return matrix.scales

    @staticmethod
    def _numbers(matrix: Matrix, codes: Tensor, scales: Tensor) -> Tensor:
        wide = torch.promote_types(matrix.dtype, torch.float32)
        return (codes.to(wide) * scales.to(wide)[:, None]).to(matrix.dtype)


def round_to_nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[outputs, inputs]` -> int8 codes of that shape and float32 scales `[outputs]`, so that the
    largest weight of an output has the code 127 or -127. An output of zeros has the scale 1."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = wide.abs().amax(1)
    scales = (largest / LARGEST).float()
    # Not zero, by which codes are divided; a weight that is not a number makes its output's scale
    # one that is not either.
    scales = scales.masked_fill(scales == 0, 1.0)
    codes = (wide / scales.to(wide.dtype)[:, None]).round().clamp_(-LARGEST, LARGEST)
    return codes.to(torch.int8), scales
