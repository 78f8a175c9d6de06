"""Loads the compiled library and declares each function with its types."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from minserve.kernels.cpu.build import NativeUnavailable, library_path, processor_features
from minserve.kernels.cpu.native_attention import AttentionCall, Function
from minserve.kernels.cpu.native_products import KINDS, ProductFunctions
from minserve.kernels.matrix import PackedShape

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
PerDtype = dict[torch.dtype, Function]
"""A function of the file for each number type that it supports."""


class NativeLibrary:
    """The functions of ops.cpp. Raises NativeUnavailable if the file cannot be
    compiled or loaded."""

    def __init__(self) -> None:
        path = str(library_path())
        try:
            # During a call with the first, other Python threads can run. Short calls use the
            # second: a step makes hundreds of them, and releasing the interpreter lock and waiting
            # to get it back would take longer than the call.
            releasing, holding = ctypes.CDLL(path), ctypes.PyDLL(path)
        except OSError as error:
            raise NativeUnavailable(f"the compiled operators do not load: {error}") from error
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        number, count = ctypes.c_double, ctypes.c_int
        self.open_team = _declare(releasing.open_team, count)
        self.rms_norm = _per_dtype(holding, "rms_norm", *[pointer] * 4, *[size] * 5, number, count)
        gate = (*[pointer] * 2, *[size] * 3, count)
        self.silu_and_mul = _per_dtype(holding, "silu_and_mul", *gate)
        self.gelu_and_mul = _per_dtype(holding, "gelu_and_mul", *gate)
        self.rotary = _per_dtype(holding, "rotary", *[pointer] * 3, *[size] * 4, count)
        self.rotary_store = _per_dtype(
            holding, "rotary_store", *[pointer] * 8, *[size] * 8, number, count
        )
        self.store_kv = _declare(holding.store_kv, *[pointer] * 5, *[size] * 8, count)
        self.attention = _per_dtype(releasing, "attention", ctypes.POINTER(AttentionCall))
        self.layers = _per_dtype(releasing, "layers", pointer)
        self.few_rows_linear = _declare(
            holding.few_rows_linear_bfloat16, *[pointer] * 4, *[size] * 4, count
        )
        product = (*[pointer] * 3, *[size] * 2, count)
        gated = (*[pointer] * 3, *[size] * 3, count)
        functions = (
            _per_dtype(holding, "linear", *product),
            _per_dtype(releasing, "linear", *product),
            _per_dtype(holding, "gated_linear", *gated),
            _per_dtype(releasing, "gated_linear", *gated),
        )
        self.products = {
            dtype: ProductFunctions(*(each[dtype] for each in functions)) for dtype in DTYPES
        }
        """The products with packed weights, for each number type."""
        self.packings = _packings(holding)


def _per_dtype(library: ctypes.CDLL, name: str, *types: type[Any]) -> PerDtype:
    return {
        dtype: _declare(library[f"{name}_{str(dtype).removeprefix('torch.')}"], *types)
        for dtype in DTYPES
    }


def _declare(function: Any, *types: type[Any]) -> Function:
    function.argtypes, function.restype = types, None
    declared: Function = function
    return declared


def _packings(library: ctypes.CDLL) -> dict[tuple[str, torch.dtype], PackedShape]:
    """How matrices of each kind are packed for products in each number type."""
    pointer = ctypes.POINTER(ctypes.c_int64)
    functions = _per_dtype(library, "packing", ctypes.c_int64, pointer, pointer)
    shapes = {
        (kind, dtype): _packing(functions[dtype], number)
        for kind, number in KINDS.items()
        for dtype in DTYPES
    }
    dense = ("dense", torch.bfloat16)
    pairs = shapes[dense].depth == 2
    if processor_features() & ({"amx_bf16"} if pairs else {"amx_bf16", "avx512_bf16", "bf16"}):
        # torch multiplies bfloat16 with instructions that these files do not use,
        # several times faster.
        del shapes[dense]
    return shapes


def _packing(function: Function, kind: int) -> PackedShape:
    width, depth = ctypes.c_int64(), ctypes.c_int64()
    function(kind, ctypes.byref(width), ctypes.byref(depth))
    return PackedShape(width.value, depth.value)
