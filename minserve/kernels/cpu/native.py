"""The operators in C++, for float32, float64 and bfloat16 on a CPU.

Whatever the compiled file does not take (float16, unusual strides, matrix products where torch's
library is faster) goes to `TorchOps`. A call costs about what a torch operator's does: pointers and
sizes are plain integers, and what is the same for all layers of a step is packed once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minserve.kernels.base import (
    LayerStack,
    LayerTensors,
    PackedShape,
    PlannedAttention,
    SampleKernel,
)
from minserve.kernels.cpu.build import NativeUnavailable, library_path, processor_features
from minserve.kernels.cpu.native_attention import (
    ONE_THREAD_PRODUCTS,
    AttentionCall,
    Function,
    NativePlannedAttention,
)
from minserve.kernels.cpu.native_layers import NativeLayers, why_not_one_call
from minserve.kernels.cpu.spinning import SpareTeam, SpinGovernor
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.reference.ops import TorchOps, pack

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
ONE_THREAD = 1 << 13
"""Numbers up to which a row-wise operator stays on one thread: a second costs a few microseconds
to set going."""

FEW_ROWS = 4
"""Rows of a product whose bfloat16 weights are not packed up to which it is ours."""
LONG = 1 << 24
"""Multiplications from which a matrix product, about 0.1 ms, lets other Python threads run."""


def native_ops() -> NativeOps:
    """The native operators of this process, compiled, loaded and tried out on first use.

    Raises NativeUnavailable, with the reason, where that fails; it is not tried again.
    """
    found = _tried()
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found))
    return found


@functools.cache
def _tried() -> NativeOps | NativeUnavailable:
    try:
        ops = NativeOps()
        ops.check()
    except NativeUnavailable as error:
        return error
    return ops


class NativeOps:
    """`Ops` in C++. Raises NativeUnavailable when the file cannot be compiled or loaded.

    A row's result is bitwise the same whatever else is in the batch and however many threads run,
    and in float64 for every way of cutting a prompt into chunks: every sum is taken in one order.
    Matrix products with weights that are not packed are torch's, and promise neither.
    """

    name = "native"
    sample_kernel: SampleKernel | None = None

    def __init__(self) -> None:
        path = str(library_path())
        try:
            # The first lets other Python threads run during a call; short calls are better off
            # without giving up the interpreter, and waiting to get it back, hundreds of times a
            # step.
            releasing, holding = ctypes.CDLL(path), ctypes.PyDLL(path)
        except OSError as error:
            raise NativeUnavailable(f"the compiled operators do not load: {error}") from error
        pointer, size, number, count = (
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_double,
            ctypes.c_int,
        )
        self._torch = TorchOps()
        self._spinning = SpinGovernor(SpareTeam(_declare(releasing.open_team, count)))
        self._rms_norm = _per_dtype(holding, "rms_norm", *[pointer] * 4, *[size] * 5, number, count)
        self._silu_and_mul = _per_dtype(holding, "silu_and_mul", *[pointer] * 2, *[size] * 3, count)
        self._rotary = _per_dtype(holding, "rotary", *[pointer] * 3, *[size] * 4, count)
        self._rotary_store = _per_dtype(
            holding, "rotary_store", *[pointer] * 8, *[size] * 8, number, count
        )
        self._store_kv = _declare(holding.store_kv, *[pointer] * 5, *[size] * 8, count)
        self._attention = _per_dtype(releasing, "attention", ctypes.POINTER(AttentionCall))
        self._layers = _per_dtype(releasing, "layers", pointer)
        product = (*[pointer] * 4, *[size] * 4, count)
        self._few_rows_linear = _declare(holding.few_rows_linear_bfloat16, *product)
        self._short_linear = _per_dtype(holding, "linear", *product)
        self._long_linear = _per_dtype(releasing, "linear", *product)
        gated = (*[pointer] * 3, *[size] * 4, count)
        self._short_gated_linear = _per_dtype(holding, "gated_linear", *gated)
        self._long_gated_linear = _per_dtype(releasing, "gated_linear", *gated)
        shapes = _per_dtype(holding, "panel", *[ctypes.POINTER(size)] * 2)
        self._packed_shapes = {dtype: _packed_shape(shapes[dtype]) for dtype in DTYPES}
        pairs = self._packed_shapes[torch.bfloat16].depth == 2
        if processor_features() & ({"amx_bf16"} if pairs else {"amx_bf16", "avx512_bf16", "bf16"}):
            # torch multiplies bfloat16 with instructions that the file does not use, several times
            # faster.
            del self._packed_shapes[torch.bfloat16]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Ops.linear`, for weights that are not packed.

        torch's, except for few rows of bfloat16: there it is two to three times slower than reading
        the weights takes, even with the processor's own instructions for it.
        """
        rows, inputs = x.shape
        if (
            x.dtype != torch.bfloat16
            or rows > FEW_ROWS
            or weight.dtype != torch.bfloat16
            or not weight.is_contiguous()
            or x.stride(1) != 1
            or (bias is not None and (bias.dtype != torch.bfloat16 or bias.stride(0) != 1))
        ):
            return self._torch.linear(x, weight, bias)
        outputs = weight.shape[0]
        out = x.new_empty(rows, outputs)
        self._few_rows_linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            x.stride(0),
            torch.get_num_threads() if rows * inputs * outputs > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def packed_shape(self, dtype: torch.dtype) -> PackedShape | None:
        """See `Ops.packed_shape`."""
        return self._packed_shapes.get(dtype)

    def packed_linear(
        self, x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None
    ) -> Tensor:
        """See `Ops.packed_linear`."""
        dtype = x.dtype
        rows, inputs = x.shape
        if (
            tuple(packed.shape[2:]) != self._packed_shapes.get(dtype)
            or packed.dtype != dtype
            or x.stride(1) != 1
            or (bias is not None and (bias.dtype != dtype or bias.stride(0) != 1))
        ):
            return self._torch.packed_linear(x, packed, out_features, bias)
        out = x.new_empty(rows, out_features)
        products = rows * inputs * out_features
        linear = self._short_linear if products < LONG else self._long_linear
        linear[dtype](
            x.data_ptr(),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            out_features,
            x.stride(0),
            torch.get_num_threads() if products > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def packed_gated_linear(self, x: Tensor, packed: Tensor, inner: int) -> Tensor:
        """See `Ops.packed_gated_linear`; in bfloat16 what lies between is not rounded."""
        dtype = x.dtype
        rows, inputs = x.shape
        if (
            tuple(packed.shape[2:]) != self._packed_shapes.get(dtype)
            or inner % packed.shape[2]
            or packed.dtype != dtype
            or x.stride(1) != 1
        ):
            return self.silu_and_mul(self.packed_linear(x, packed, 2 * inner))
        out = x.new_empty(rows, inner)
        products = 2 * rows * inputs * inner
        functions = self._short_gated_linear if products < LONG else self._long_gated_linear
        functions[dtype](
            x.data_ptr(),
            packed.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            inner,
            x.stride(0),
            torch.get_num_threads() if products > ONE_THREAD_PRODUCTS else 1,
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        dtype, shape, strides = x.dtype, x.shape, x.stride()
        function = self._rms_norm.get(dtype)
        if function is None or strides[-1] != 1 or weight.dtype != dtype:
            return self._torch.rms_norm(x, weight, eps)
        out = x.new_empty(*shape)
        if len(shape) == 2:
            (rows, size), heads, head_stride = shape, 1, 0
        else:
            (rows, heads, size), head_stride = shape, strides[1]
        function(
            x.data_ptr(),
            None,
            weight.data_ptr(),
            out.data_ptr(),
            rows,
            heads,
            size,
            strides[0],
            head_stride,
            eps,
            _threads(rows * heads * size),
        )
        return out

    def rms_norm_rows(self, x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm_rows`."""
        return self.rms_norm(x.index_select(0, rows), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.add_rms_norm`."""
        dtype, strides = x.dtype, x.stride()
        function = self._rms_norm.get(dtype)
        if (
            function is None
            or strides[1] != 1
            or not residual.is_contiguous()
            or residual.dtype != dtype
            or weight.dtype != dtype
        ):
            return self._torch.add_rms_norm(x, residual, weight, eps)
        rows, size = x.shape
        out = x.new_empty(rows, size)
        function(
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            rows,
            1,
            size,
            strides[0],
            0,
            eps,
            _threads(rows * size),
        )
        return out

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.silu_and_mul`."""
        function = self._silu_and_mul.get(gate_up.dtype)
        row_stride, stride = gate_up.stride()
        if function is None or stride != 1:
            return self._torch.silu_and_mul(gate_up)
        rows, width = gate_up.shape
        inner = width // 2
        out = gate_up.new_empty(rows, inner)
        function(
            gate_up.data_ptr(), out.data_ptr(), rows, inner, row_stride, _threads(rows * width)
        )
        return out

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """See `Ops.rotary_`."""
        dtype, shape, strides = x.dtype, x.shape, x.stride()
        function = self._rotary.get(dtype)
        if (
            function is None
            or cos_sin.dtype != accumulation_dtype(dtype)
            or positions.dtype != torch.int64
            or strides[1] != shape[2]
            or strides[2] != 1
        ):
            self._torch.rotary_(x, positions, cos_sin)
            return
        rows, heads, head_dim = shape
        function(
            x.data_ptr(),
            positions.data_ptr(),
            cos_sin.data_ptr(),
            rows,
            heads,
            head_dim,
            strides[0],
            _threads(rows * heads * head_dim),
        )

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `Ops.store_kv`."""
        rows, heads, head_dim = k.shape
        k_strides, v_strides = k.stride(), v.stride()
        strides, dtype = keys.stride(), k.dtype
        if (
            slots.dtype != torch.int64
            or not dtype == v.dtype == keys.dtype == values.dtype
            or strides != values.stride()
            or not k_strides[1] == v_strides[1] == strides[2] == head_dim
            or not k_strides[2] == v_strides[2] == strides[3] == 1
        ):
            self._torch.store_kv(k, v, keys, values, slots)
            return
        size = k.itemsize
        self._store_kv(
            k.data_ptr(),
            v.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            rows,
            heads,
            head_dim * size,
            k_strides[0] * size,
            v_strides[0] * size,
            keys.shape[2],
            strides[0] * size,
            strides[1] * size,
            _threads(rows * heads * head_dim),
        )

    def rotary_store_(
        self,
        heads: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Ops.rotary_store_`."""
        dtype, strides, cache = heads.dtype, heads.stride(), keys.stride()
        function = self._rotary_store.get(dtype)
        rows, num_heads, head_dim = heads.shape
        if (
            function is None
            or not dtype == keys.dtype == values.dtype
            or cos_sin.dtype != accumulation_dtype(dtype)
            or not positions.dtype == slots.dtype == torch.int64
            or cache != values.stride()
            or not strides[1] == cache[2] == head_dim
            or not strides[2] == cache[3] == 1
            or (q_norm is None) != (k_norm is None)
            or any(norm is not None and norm.dtype != dtype for norm in (q_norm, k_norm))
        ):
            self._torch.rotary_store_(
                heads, positions, cos_sin, keys, values, slots, q_norm, k_norm, eps
            )
            return
        num_kv_heads = keys.shape[1]
        function(
            heads.data_ptr(),
            positions.data_ptr(),
            cos_sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
            rows,
            num_heads - 2 * num_kv_heads,
            num_kv_heads,
            head_dim,
            strides[0],
            keys.shape[2],
            cache[0],
            cache[1],
            eps,
            _threads(rows * num_heads * head_dim),
        )

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """See `Ops.plan_attention`; trees are torch's to do. Called once a step."""
        if torch.get_num_threads() > 1:
            self._spinning.step()
        if tree is not None:
            return self._torch.plan_attention(
                block_tables, query_starts, kv_lens, query_lens, context_lens, tree
            )
        return NativePlannedAttention(
            self._attention, block_tables, query_starts, kv_lens, query_lens, context_lens
        )

    def plan_decode(
        self, block_tables: Tensor, kv_lens: Tensor, longest: int
    ) -> PlannedAttention | None:
        """See `Ops.plan_decode`."""
        return None

    def layer_stack(self, layers: Sequence[LayerTensors]) -> LayerStack | None:
        """See `Ops.layer_stack`."""
        dtype = layers[0].input_norm.dtype if layers else torch.float32
        if why_not_one_call(layers, self.packed_shape(dtype)):
            return None
        return NativeLayers(self._layers, layers)

    def check(self) -> None:
        """Compare with torch on a small ragged batch; NativeUnavailable if they disagree.

        A compiler or a processor nobody tried should cost speed, not correct answers.
        """
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        lens = (1, 1, 19), (70, 3, 41)
        tables = torch.arange(15, dtype=torch.int32).view(3, 5)
        starts = torch.tensor([0, 1, 2, 21], dtype=torch.int32)
        kv_lens = torch.tensor(lens[1], dtype=torch.int32)
        positions = torch.arange(21)
        table = random(21, 32)
        rows, weight = random(21, 20 * 32), random(20 * 32)
        keys, values = random(15, 2, 16, 32), random(15, 2, 16, 32)
        for dtype in DTYPES:
            exact = accumulation_dtype(dtype)
            results = []
            for ops in (self, self._torch):
                x = rows.to(dtype, copy=True)
                heads = x.view(21, 20, 32)
                ops.rotary_(heads[:, :10], positions, table.to(exact))
                attended, _ = ops.plan_attention(tables, starts, kv_lens, *lens)(
                    heads[:, :4], keys.to(dtype), values.to(dtype), 0.2, 30
                )
                packed = pack(x, self.packed_shape(dtype) or PackedShape(8))
                product = ops.packed_linear(x, packed, len(x), x[0, : len(x)])
                parts = (
                    ops.rms_norm(x, weight.to(dtype), 1e-6),
                    ops.silu_and_mul(x),
                    attended,
                    product / product.abs().max(),
                )
                results.append(torch.cat([part.flatten().double() for part in parts]))
            error = (results[0] - results[1]).abs().max().item()
            if not error < {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 0.2):
                raise NativeUnavailable(
                    f"the compiled operators differ from torch's by {error:.1e} in {dtype}: the "
                    "compiler or the processor is at fault; please report both"
                )


def _per_dtype(library: ctypes.CDLL, name: str, *types: type[Any]) -> dict[torch.dtype, Function]:
    """The function of each number type the file has it for."""
    return {
        dtype: _declare(library[f"{name}_{str(dtype).removeprefix('torch.')}"], *types)
        for dtype in DTYPES
    }


def _packed_shape(function: Function) -> PackedShape:
    width, depth = ctypes.c_int64(), ctypes.c_int64()
    function(ctypes.byref(width), ctypes.byref(depth))
    return PackedShape(width.value, depth.value)


def _declare(function: Any, *types: type[Any]) -> Function:
    function.argtypes, function.restype = types, None
    declared: Function = function
    return declared


def _threads(size: int) -> int:
    return 1 if size <= ONE_THREAD else torch.get_num_threads()
