"""What a weight format is: how it reads, stores, restores and divides a matrix.

Code outside a format never checks which one it is; a new format is a new file here and a line in
`FORMATS`. Operators may know the `kind` of its matrices and multiply with them directly; if they do
not, the numbers that a matrix stands for are computed at every product (`layers.Linear`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from minserve.kernels.matrix import Matrix, MatrixFormat
from minserve.spec import LinearShape, Storage

ShardDim = Literal["output", "input"]
"""Which dimension of the matrix is split: the rows of every part (column-parallel in Megatron-LM's
terms, arXiv 1909.08053), or the columns, whose partial results the caller sums (row-parallel)."""


class TensorSource(Protocol):
    """The stored tensors of one projection, each read when it is needed."""

    def read(self, suffix: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `<projection>.<suffix>` in its stored number format. Raises an error that
        names it if it is missing or has another shape."""
        ...


class WeightFormat(MatrixFormat, Storage, Protocol):
    """One way to store a matrix. Hashable: equal formats share weights (`models.WeightStore`)."""

    def load(
        self,
        shape: LinearShape,
        sources: Sequence[TensorSource],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Matrix:
        """Read one source per part into one canonical matrix, without its bias, that computes in
        `dtype`."""
        ...

    def shard(
        self, matrix: Matrix, shape: LinearShape, rank: int, world: int, dim: ShardDim
    ) -> Matrix:
        """The part of a canonical matrix without bias, of this shape, that `rank` of `world` keeps:
        a copy, so that the whole can be freed. The sizes are divisible."""
        ...


def load_matrix(
    weight_format: WeightFormat,
    shape: LinearShape,
    sources: Sequence[TensorSource],
    dtype: torch.dtype,
    device: torch.device,
) -> Matrix:
    """A canonical matrix in this format, with its bias in `dtype`. Raises ValueError if the format
    makes something else."""
    matrix = weight_format.load(shape, sources, dtype, device)
    made = (matrix.outputs, matrix.inputs, matrix.codes.shape[0], matrix.dtype, matrix.packing)
    if made != (shape.outputs, shape.inputs, shape.outputs, dtype, None):
        raise ValueError(
            f"the format {weight_format.name!r} made a matrix of {matrix.outputs} outputs and "
            f"{matrix.inputs} inputs in {matrix.dtype}, with codes of {list(matrix.codes.shape)} "
            f"and packing {matrix.packing}: expected {shape.outputs} outputs and {shape.inputs} "
            f"inputs in {dtype}, codes of [{shape.outputs}, ...], and no packing"
        )
    if not shape.bias:
        return matrix
    bias = torch.empty(shape.outputs, dtype=dtype, device=device)
    start = 0
    for rows, source in zip(shape.parts, sources, strict=True):
        bias[start : start + rows].copy_(source.read("bias", (rows,)))
        start += rows
    return matrix.with_bias(bias)


def shard_matrix(
    weight_format: WeightFormat,
    matrix: Matrix,
    shape: LinearShape,
    rank: int,
    world: int,
    dim: ShardDim,
) -> Matrix:
    """The part of a canonical matrix that `rank` of `world` equal shards keeps, and its bias: of
    "input" shards, whose products are summed, only the first has it. Raises ValueError if the sizes
    are not divisible by `world`."""
    sizes = shape.parts if dim == "output" else (shape.inputs,)
    if any(size % world for size in sizes):
        raise ValueError(
            f"a linear layer with {dim} sizes {sizes} cannot be cut into {world} equal shards: "
            "choose a tensor-parallel size that divides all of them"
        )
    shard = weight_format.shard(matrix.with_bias(None), shape, rank, world, dim)
    bias = matrix.bias
    if bias is None or (dim == "input" and rank):
        return shard
    if dim == "output":
        bias = shard_tensor(bias, shape, rank, world, dim)
    return shard.with_bias(bias)


def shard_tensor(
    tensor: Tensor, shape: LinearShape, rank: int, world: int, dim: ShardDim
) -> Tensor:
    """This rank's rows of every part of `[outputs, ...]`, or this rank's columns of it."""
    if dim == "input":
        return tensor.chunk(world, 1)[rank].clone()
    return torch.cat([part.chunk(world)[rank] for part in tensor.split_with_sizes(shape.parts)])


def read_parts(
    shape: LinearShape, sources: Sequence[TensorSource]
) -> Iterator[tuple[slice, Tensor]]:
    """The stored weights of each part, one at a time, and their rows in the fused matrix."""
    start = 0
    for rows, source in zip(shape.parts, sources, strict=True):
        yield slice(start, start + rows), source.read("weight", (rows, shape.inputs))
        start += rows
