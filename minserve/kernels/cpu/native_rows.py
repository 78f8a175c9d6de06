"""The operators of rows.h: norms, gates, rotation, storing.

A call costs about as much around its arithmetic as a torch operator, because pointers and sizes
are plain integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minserve.kernels.cpu.native_attention import Function, lies_flat
from minserve.kernels.cpu.native_library import NativeLibrary
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.reference.ops import TorchOps

ONE_THREAD = 1 << 13
"""With at most this many numbers, a row-wise operator uses one thread: starting a second costs a
few microseconds."""


class NativeRowOps:
    """The row-wise part of `Ops`. Number types and strides that the file does not support
    go to `TorchOps`."""

    def __init__(self, library: NativeLibrary) -> None:
        self._torch = TorchOps()
        self._rms_norm = library.rms_norm
        self._silu_and_mul = library.silu_and_mul
        self._gelu_and_mul = library.gelu_and_mul
        self._rotary = library.rotary
        self._rotary_store = library.rotary_store
        self._store_kv = library.store_kv

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        dtype, shape, strides = x.dtype, x.shape, x.stride()
        function = self._rms_norm.get(dtype)
        if function is None or strides[-1] != 1 or not lies_flat(weight, dtype, shape[-1:]):
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
            or not lies_flat(residual, dtype, x.shape)
            or not lies_flat(weight, dtype, x.shape[1:])
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
        if function is None or gate_up.stride(1) != 1:
            return self._torch.silu_and_mul(gate_up)
        return _gate_and_mul(function, gate_up)

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.gelu_and_mul`."""
        function = self._gelu_and_mul.get(gate_up.dtype)
        if function is None or gate_up.stride(1) != 1:
            return self._torch.gelu_and_mul(gate_up)
        return _gate_and_mul(function, gate_up)

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """See `Ops.rotary_`."""
        dtype, shape, strides = x.dtype, x.shape, x.stride()
        function = self._rotary.get(dtype)
        if (
            function is None
            or not lies_flat(positions, torch.int64, shape[:1])
            or not lies_flat(cos_sin, accumulation_dtype(dtype), (len(cos_sin), shape[2]))
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
            not lies_flat(slots, torch.int64, (rows,))
            or not dtype == v.dtype == keys.dtype == values.dtype
            or v.shape != k.shape
            or values.shape != keys.shape
            or keys.shape[1] != heads
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
            or not lies_flat(positions, torch.int64, (rows,))
            or not lies_flat(slots, torch.int64, (rows,))
            or not lies_flat(cos_sin, accumulation_dtype(dtype), (len(cos_sin), head_dim))
            or values.shape != keys.shape
            or cache != values.stride()
            or not strides[1] == cache[2] == head_dim
            or not strides[2] == cache[3] == 1
            or (q_norm is None) != (k_norm is None)
            or any(
                norm is not None and not lies_flat(norm, dtype, (head_dim,))
                for norm in (q_norm, k_norm)
            )
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


def _gate_and_mul(function: Function, gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape
    inner = width // 2
    out = gate_up.new_empty(rows, inner)
    threads = _threads(rows * width)
    function(gate_up.data_ptr(), out.data_ptr(), rows, inner, gate_up.stride(0), threads)
    return out


def _threads(size: int) -> int:
    return 1 if size <= ONE_THREAD else torch.get_num_threads()
