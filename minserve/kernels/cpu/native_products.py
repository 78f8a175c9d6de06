"""Products with packed weights, of every kind that products.h multiplies.

A product holds the structure that the C++ code reads, filled once: a call passes two addresses and
the number of rows.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.kernels.base import Ops
from minserve.kernels.cpu.native_attention import ONE_THREAD_PRODUCTS, Function, lies_flat
from minserve.kernels.matrix import Activation, Matrix, PackedShape

KINDS = {"dense": 0, "int8": 1}
"""`MatrixFormat.kind` -> `Kind` in matrix.h."""
ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
"""`Activation` in vectors.h."""
LONG = 1 << 24
"""A product of at least this many multiplications, about 0.1 ms, lets other Python threads run."""


class NativeMatrix(ctypes.Structure):
    """`Matrix` in matrix.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "outputs", "inputs", "group")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "bias")),
    ]


class ProductFunctions(NamedTuple):
    """The products of one number type. During a long one, other Python threads can run."""

    short: Function
    long: Function
    short_gated: Function
    long_gated: Function


class NativeProduct:
    """`Product` with a packed matrix, whose tensors it keeps alive.

    A row's result is bitwise the same whatever else is in the batch. Inputs that the C++ code does
    not support are multiplied by torch, with weights unpacked at every call.
    """

    __slots__ = ("_functions", "_gates", "_whole_halves", "address", "matrix", "native")

    def __init__(self, matrix: Matrix, functions: ProductFunctions, ops: Ops) -> None:
        if matrix.packing is None:
            raise ValueError("the matrix is canonical: pack it as `Ops.packing` says")
        self.matrix = matrix
        self._functions = functions
        self._gates = {"silu": ops.silu_and_mul, "gelu_tanh": ops.gelu_and_mul}
        self.native = NativeMatrix(
            KINDS[matrix.kind],
            matrix.outputs,
            matrix.inputs,
            matrix.group,
            *(_address(each) for each in (matrix.codes, matrix.scales, matrix.zeros, matrix.bias)),
        )
        self.address = ctypes.addressof(self.native)
        """Of the structure that C++ reads."""
        self._whole_halves = matrix.bias is None and not (
            matrix.outputs % (2 * matrix.packing.width)
        )

    def apply(self, x: Tensor) -> Tensor:
        """See `Product.apply`."""
        matrix = self.matrix
        rows, inputs = x.shape
        if x.dtype != matrix.dtype or inputs != matrix.inputs or x.stride(1) != 1:
            return self._torch(x)
        outputs = matrix.outputs
        out = x.new_empty(rows, outputs)
        products = rows * inputs * outputs
        functions = self._functions
        function = functions.short if products < LONG else functions.long
        function(
            x.data_ptr(),
            self.address,
            out.data_ptr(),
            rows,
            x.stride(0),
            torch.get_num_threads() if products > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def apply_gated(self, x: Tensor, activation: Activation) -> Tensor:
        """See `Product.apply_gated`. If one call computes it, the activation's inputs are not
        rounded to bfloat16: that takes a matrix without bias, and a gate of whole panels."""
        matrix = self.matrix
        rows, inputs = x.shape
        if (
            not self._whole_halves
            or x.dtype != matrix.dtype
            or inputs != matrix.inputs
            or x.stride(1) != 1
        ):
            return self._gates[activation](self.apply(x))
        outputs = matrix.outputs
        out = x.new_empty(rows, outputs // 2)
        products = rows * inputs * outputs
        functions = self._functions
        function = functions.short_gated if products < LONG else functions.long_gated
        function(
            x.data_ptr(),
            self.address,
            out.data_ptr(),
            rows,
            x.stride(0),
            ACTIVATIONS[activation],
            torch.get_num_threads() if products > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def _torch(self, x: Tensor) -> Tensor:
        matrix = self.matrix
        bias = None if matrix.bias is None else matrix.bias.to(x.dtype)
        return F.linear(x, matrix.dequantised().to(x.dtype), bias)


def multiplies(matrix: Matrix, packing: PackedShape | None) -> bool:
    """Whether the C++ code multiplies with this matrix, `packing` being how it has its kind."""
    if packing is None or matrix.packing != packing:
        return False
    (width, depth), outputs = packing, (matrix.outputs,)
    panels, steps = -(-matrix.outputs // width), -(-matrix.inputs // depth)
    bias, scales = matrix.bias, matrix.scales
    if matrix.codes.shape != (panels, steps, width, depth) or not matrix.codes.is_contiguous():
        return False
    if bias is not None and not lies_flat(bias, matrix.dtype, outputs):
        return False
    if matrix.kind == "dense":
        return matrix.codes.dtype == matrix.dtype
    return (
        matrix.codes.dtype == torch.int8
        and matrix.zeros is None
        and matrix.group == 0
        and scales is not None
        and lies_flat(scales, torch.float32, outputs)
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
