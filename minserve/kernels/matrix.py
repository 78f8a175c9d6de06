"""A weight matrix as it lies in memory, and the product that operators make of it.

A `Matrix` is data: engines share it. A weight format (`quantization.formats`) makes it from a
checkpoint in canonical form, `[outputs, inputs]`; a set of operators may have it packed instead
(`Ops.packing`), and multiplies with it as a `Product`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]
"""How a gate is bent before it multiplies: SiLU, or GELU in its approximation by tanh (Hendrycks
and Gimpel, arXiv 1606.08415)."""


class PackedShape(NamedTuple):
    """How codes are packed into panels of outputs.

    `packed[p, i, j, k]` belongs to output `p * width + j` and input `i * depth + k`; the shape is
    `[ceil(outputs / width), ceil(inputs / depth), width, depth]`, filled up with zeros.
    """

    width: int
    """Outputs per panel."""
    depth: int = 1
    """Inputs that are adjacent in memory: 2 if a processor multiplies pairs."""


class MatrixFormat(Protocol):
    """What a `Matrix` needs of the weight format that made it."""

    @property
    def kind(self) -> str:
        """The layout of its matrices, by which operators know them: "dense", "int8"."""
        ...

    def dequantise(self, matrix: Matrix) -> Tensor:
        """The numbers `[outputs, inputs]` in `matrix.dtype` that a canonical matrix stands for."""
        ...

    def rows(self, matrix: Matrix, codes: Tensor, indices: Tensor) -> Tensor:
        """The numbers `[n, inputs]` of rows `indices`, int64 `[n]`, whose codes are `codes`
        `[n, inputs]`."""
        ...


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights of `[outputs, inputs]` in one format, with an optional bias. Read-only."""

    format: MatrixFormat
    outputs: int
    inputs: int
    dtype: torch.dtype
    """The number type in which products are computed."""
    codes: Tensor
    """Dense: the numbers themselves. Canonical: `[outputs, inputs]`, or fewer columns if a byte
    holds several codes; packed: see `PackedShape`."""
    scales: Tensor | None = None
    """Float32, `[outputs]` or `[outputs, inputs / group]`."""
    zeros: Tensor | None = None
    """Codes that stand for zero, shaped like `scales`; None: the code 0 does."""
    group: int = 0
    """Inputs that share a scale; 0: all inputs of an output."""
    bias: Tensor | None = None
    """`[outputs]`, in `dtype`."""
    packing: PackedShape | None = None
    """None: canonical."""

    @property
    def kind(self) -> str:
        """`MatrixFormat.kind`."""
        return self.format.kind

    @property
    def nbytes(self) -> int:
        """Bytes held: codes with their packing, scales, zero points and bias."""
        tensors = (self.codes, self.scales, self.zeros, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self.codes.device

    def with_bias(self, bias: Tensor | None) -> Matrix:
        """The same weights with this bias `[outputs]`, or none."""
        return replace(self, bias=bias)

    def packed(self, packing: PackedShape | None) -> Matrix:
        """The canonical matrix with its codes packed in this way, a copy; itself for None."""
        if packing is None:
            return self
        return replace(self, codes=pack(self.codes, packing), packing=packing)

    def canonical(self) -> Matrix:
        """The matrix unpacked, a copy; itself if it is not packed."""
        if self.packing is None:
            return self
        return replace(self, codes=unpack(self.codes, self.outputs, self.inputs), packing=None)

    def dequantised(self) -> Tensor:
        """The numbers `[outputs, inputs]` in `dtype`, computed at every call."""
        return self.format.dequantise(self.canonical())

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the numbers: int64 `[n]` -> `[n, inputs]` in `dtype`, a copy."""
        if self.packing is None:
            codes = torch.index_select(self.codes, 0, indices)
        else:
            width = self.packing.width
            block = torch.div(indices, width, rounding_mode="floor")
            found = self.codes.transpose(1, 2)[block, indices - block * width]
            codes = found.flatten(1)[:, : self.inputs]
        return self.format.rows(self, codes, indices)

    def part(self, start: int, stop: int) -> Matrix | None:
        """Outputs `start` to `stop` (exclusive) as a matrix over the same memory; None if its
        packing has no panel that begins there. Raises ValueError for outputs that it has not."""
        if not 0 <= start <= stop <= self.outputs:
            raise ValueError(
                f"outputs {start} to {stop} of a matrix of {self.outputs}: a part begins at 0 or "
                f"later and ends at {self.outputs} or before"
            )
        codes = self.codes
        if self.packing is None:
            codes = codes[start:stop]
        else:
            first, over = divmod(start, self.packing.width)
            if over:
                return None
            codes = codes[first : -(-stop // self.packing.width)]

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[start:stop]

        return replace(
            self,
            outputs=stop - start,
            codes=codes,
            scales=cut(self.scales),
            zeros=cut(self.zeros),
            bias=cut(self.bias),
        )


class Product(Protocol):
    """A `Matrix` bound to the operators of one engine, which multiply with it."""

    @property
    def matrix(self) -> Matrix:
        """The weights."""
        ...

    def apply(self, x: Tensor) -> Tensor:
        """`x @ weights.T + bias`: `[rows, inputs]` (rows may be strided) -> `[rows, outputs]`."""
        ...

    def apply_gated(self, x: Tensor, activation: Activation) -> Tensor:
        """`activation(gate) * up` of `apply(x)`, whose first half of the outputs is the gate:
        `[rows, inputs]` -> `[rows, outputs / 2]`."""
        ...


def pack(codes: Tensor, shape: PackedShape) -> Tensor:
    """`[outputs, inputs]` -> a copy, packed as `PackedShape` says."""
    width, depth = shape
    outputs, inputs = codes.shape
    padded = F.pad(codes, (0, -inputs % depth, 0, -outputs % width))
    tiles = padded.view(-(-outputs // width), width, -(-inputs // depth), depth)
    return tiles.transpose(1, 2).contiguous()


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The codes `[outputs, inputs]` that were packed, a copy."""
    rows = packed.transpose(1, 2).flatten(2).flatten(0, 1)
    return rows[:outputs, :inputs].contiguous()
