"""`Linear` owns a weight format: how a matrix is read, stored, split for tensor
parallelism, applied.

Projections that read the same input are one `Linear` with several parts (q|k|v, gate|up): one
matrix product instead of three. Code outside a format never checks which format it is; quantized
formats are further classes with the methods of `LinearWeight`. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from minserve.kernels.base import Ops, PackedShape
from minserve.kernels.reference.ops import pack, unpack

ShardDim = Literal["output", "input"]
"""Which dimension of the matrix is split: the rows of every part (column-parallel in Megatron-LM's
terms, arXiv 1909.08053), or the columns, whose partial results the caller sums (row-parallel)."""


@dataclass(frozen=True)
class LinearShape:
    """`[sum(parts), in_features]`, with a bias of `[sum(parts)]` or none."""

    in_features: int
    parts: tuple[int, ...]
    """Output rows of each fused projection, in order."""
    bias: bool = False

    @property
    def out_features(self) -> int:
        """Output rows of all parts together."""
        return sum(self.parts)

    def shard(self, world: int, dim: ShardDim) -> LinearShape:
        """The shape of one of `world` equal shards. Raises ValueError if the sizes
        are not divisible."""
        sizes = self.parts if dim == "output" else (self.in_features,)
        if any(size % world for size in sizes):
            raise ValueError(
                f"a linear layer with {dim} sizes {sizes} cannot be cut into {world} equal "
                "shards: choose a tensor-parallel size that divides all of them"
            )
        if dim == "output":
            return LinearShape(
                self.in_features, tuple(part // world for part in self.parts), self.bias
            )
        return LinearShape(self.in_features // world, self.parts, self.bias)


class TensorSource(Protocol):
    """The stored tensors of one projection, each read when it is needed."""

    def read(self, suffix: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `<projection>.<suffix>` in its stored number format. Raises an error that
        names it if it is missing or has another shape."""
        ...


class LinearWeight(Protocol):
    """A loaded weight: read-only, and may be shared by engines."""

    @property
    def nbytes(self) -> int:
        """Its bytes, including scales and packing."""
        ...

    @property
    def packed(self) -> Tensor | None:
        """The matrix in the layout of `Ops.packed_linear`; None if it is stored in another way."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """`[out_features]`, or None."""
        ...

    def apply(self, ops: Ops, x: Tensor) -> Tensor:
        """`[rows, in_features]` -> `[rows, out_features]`."""
        ...

    def apply_gated(self, ops: Ops, x: Tensor) -> Tensor:
        """`silu_and_mul(apply(x))`: `[rows, in_features]` -> `[rows, out_features / 2]`."""
        ...

    def shard(self, shape: LinearShape, rank: int, world: int, dim: ShardDim) -> LinearWeight:
        """The part of this weight, shaped `shape`, that `rank` of `world` keeps: a copy, so that
        the whole can be freed."""
        ...


class TableWeight(LinearWeight, Protocol):
    """A weight whose rows can be looked up: an embedding table, tied to the head or not."""

    def rows(self, indices: Tensor) -> Tensor:
        """int64 `[n]` -> those rows `[n, in_features]`, a copy."""
        ...


class WeightFormat(Protocol):
    """Reads one kind of weight from a checkpoint."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> LinearWeight:
        """Read one source per part into one weight that computes in `dtype`."""
        ...


def empty_matrix(
    out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An uninitialised `[out_features, in_features]` in the memory order that torch
    multiplies fastest.

    On a CPU in float32 and float64 that is input-major, a transposed view: MKL then multiplies 16
    to 63 rows, the usual decode batch, 2.5 to 8 times as fast (256 wide, 2 threads of an Ice Lake
    Xeon, torch 2.13), and other numbers of rows equally fast.
    """
    if device.type == "cpu" and dtype in (torch.float32, torch.float64):
        return torch.empty(in_features, out_features, dtype=dtype, device=device).t()
    return torch.empty(out_features, in_features, dtype=dtype, device=device)


class DenseWeight:
    """A matrix `[out_features, in_features]` in the layout of `empty_matrix`, and an optional bias
    `[out_features]`."""

    __slots__ = ("bias", "packed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias: Tensor | None = bias
        self.packed: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of matrix and bias."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, ops: Ops, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        return ops.linear(x, self.weight, self.bias)

    def apply_gated(self, ops: Ops, x: Tensor) -> Tensor:
        """`silu_and_mul(apply(x))`."""
        return ops.silu_and_mul(ops.linear(x, self.weight, self.bias))

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the matrix: int64 `[n]` -> `[n, in_features]`, a copy."""
        return torch.index_select(self.weight, 0, indices)

    def shard(self, shape: LinearShape, rank: int, world: int, dim: ShardDim) -> DenseWeight:
        """This rank's rows of every part, or this rank's columns."""
        if dim == "input":
            width = shape.in_features // world
            weight = self._copy(self.weight[:, rank * width : (rank + 1) * width])
            # The partial products are summed, so exactly one rank may add the bias.
            keep = self.bias is not None and rank == 0
            return DenseWeight(weight, self.bias if keep else None)

        def rows(tensor: Tensor) -> Tensor:
            pieces = tensor.split_with_sizes(shape.parts)
            return torch.cat([piece.chunk(world)[rank] for piece in pieces])

        weight = self._copy(rows(self.weight))
        return DenseWeight(weight, None if self.bias is None else rows(self.bias))

    @staticmethod
    def _copy(matrix: Tensor) -> Tensor:
        out_features, in_features = matrix.shape
        return empty_matrix(out_features, in_features, matrix.dtype, matrix.device).copy_(matrix)


class DenseFormat:
    """Unquantized weights: every part is copied into its rows of one matrix."""

    name = "dense"

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> DenseWeight:
        """Fill a preallocated matrix part by part, so that a fused matrix never exists
        twice in memory."""
        weight = empty_matrix(shape.out_features, shape.in_features, dtype, device)
        bias = torch.empty(shape.out_features, dtype=dtype, device=device) if shape.bias else None
        start = 0
        for rows, source in zip(shape.parts, sources, strict=True):
            stop = start + rows
            weight[start:stop].copy_(source.read("weight", (rows, shape.in_features)))
            if bias is not None:
                bias[start:stop].copy_(source.read("bias", (rows,)))
            start = stop
        return DenseWeight(weight, bias)


class PackedWeight:
    """A matrix packed for `Ops.packed_linear`, and an optional bias `[out_features]`."""

    __slots__ = ("bias", "in_features", "out_features", "packed")

    def __init__(
        self, packed: Tensor, out_features: int, in_features: int, bias: Tensor | None = None
    ) -> None:
        self.packed: Tensor = packed
        self.out_features = out_features
        self.in_features = in_features
        self.bias: Tensor | None = bias

    @property
    def nbytes(self) -> int:
        """Bytes of packed matrix and bias."""
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, ops: Ops, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        return ops.packed_linear(x, self.packed, self.out_features, self.bias)

    def apply_gated(self, ops: Ops, x: Tensor) -> Tensor:
        """`silu_and_mul(apply(x))`; without a bias, the projection's result is never stored."""
        if self.bias is not None:
            return ops.silu_and_mul(self.apply(ops, x))
        return ops.packed_gated_linear(x, self.packed, self.out_features // 2)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the matrix: int64 `[n]` -> `[n, in_features]`, a copy."""
        width = self.packed.shape[2]
        block = torch.div(indices, width, rounding_mode="floor")
        found = self.packed.transpose(1, 2)[block, indices - block * width]
        return found.flatten(1)[:, : self.in_features]

    def shard(self, shape: LinearShape, rank: int, world: int, dim: ShardDim) -> PackedWeight:
        """This rank's rows of every part, or this rank's columns, packed again."""
        matrix = unpack(self.packed, self.out_features, self.in_features)
        part = DenseWeight(matrix, self.bias).shard(shape, rank, world, dim)
        packed = pack(part.weight, PackedShape(*self.packed.shape[2:]))
        outputs, inputs = part.weight.shape
        return PackedWeight(packed, outputs, inputs, part.bias)


@dataclass(frozen=True)
class PackedFormat:
    """Unquantized weights, packed so that our own CPU product reads them from front to back."""

    packed: PackedShape
    """`Ops.packed_shape` of the operators that will multiply."""
    name: str = "packed"

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> PackedWeight:
        """Read the whole matrix, then pack it: for a moment one projection exists twice."""
        whole = DenseFormat().load(shape, sources, dtype, device)
        packed = pack(whole.weight, self.packed)
        return PackedWeight(packed, shape.out_features, shape.in_features, whole.bias)


class Linear:
    """One (possibly fused) projection: its shape and its weight."""

    __slots__ = ("apply", "apply_gated", "shape", "weight")

    def __init__(self, shape: LinearShape, weight: LinearWeight) -> None:
        self.shape = shape
        self.weight = weight
        self.apply = weight.apply
        """`apply(ops, x)`; stored as an attribute to save one call per projection and step."""
        self.apply_gated = weight.apply_gated

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def shard(self, rank: int, world: int, dim: ShardDim) -> Linear:
        """This rank's shard. Raises ValueError if the sizes are not divisible by `world`."""
        smaller = self.shape.shard(world, dim)
        weight = self.weight.shard(self.shape, rank, world, dim)
        if dim == "input" and rank:
            smaller = LinearShape(smaller.in_features, smaller.parts, bias=False)
        return Linear(smaller, weight)
