"""Whole decoder layers in one call of the compiled file, which saves time around the arithmetic.

A small model's operators take microseconds, and so does each call from Python: with a single
stream, the 60 calls of a step take half of its time. Here Python fills in one structure per step.
The C++ code calls the same operators, so results are bit for bit the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minserve.kernels.base import LayerTensors, PackedShape, PlannedAttention
from minserve.kernels.cpu.native_attention import AttentionCall, Function, NativePlannedAttention
from minserve.kernels.tree import refuse_window

_POINTERS = (
    *("input_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "cos_sin", "output", "output_bias"),
    *("post_norm", "gate_up", "down", "down_bias"),
)


class _Layer(ctypes.Structure):
    """`Layer` in ops.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_POINTERS, "keys", "values")),
        ("group", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_double),
    ]


class _Group(ctypes.Structure):
    """`Group` in ops.cpp."""

    _fields_ = [("attention", ctypes.POINTER(AttentionCall)), ("slots", ctypes.c_void_p)]


class _LayersCall(ctypes.Structure):
    """`LayersCall` in ops.cpp."""

    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("groups", ctypes.POINTER(_Group)),
        *((name, ctypes.c_void_p) for name in ("h", "scratch", "positions")),
        *((name, ctypes.c_int64) for name in ("num_layers", "rows", "hidden", "inner")),
        *((name, ctypes.c_double) for name in ("eps", "attention_s")),
        ("threads", ctypes.c_int64),
    ]


class NativeLayers:
    """`LayerStack` in C++: the layers of one decoder, whose tensors it keeps alive."""

    def __init__(
        self, functions: dict[torch.dtype, Function], layers: Sequence[LayerTensors]
    ) -> None:
        self._layers = tuple(layers)
        first = layers[0]
        self._dtype = first.input_norm.dtype
        self._function = functions[self._dtype]
        self._hidden = first.input_norm.shape[0]
        self._projected = (first.num_heads + 2 * first.num_kv_heads) * first.head_dim
        self._attended = first.num_heads * first.head_dim
        # Normed rows, the rows to be added, and the larger of attention's and the
        # feed-forward's buffers.
        self._width = 2 * self._hidden + max(self._projected + self._attended, 3 * first.inner)
        self._stored: Any = (_Layer * len(layers))()
        for stored, layer in zip(self._stored, layers, strict=True):
            for name in _POINTERS:
                tensor = getattr(layer, name)
                setattr(stored, name, None if tensor is None else tensor.data_ptr())
            stored.window, stored.scale = layer.window or 0, layer.scale
        self._caches: Sequence[tuple[Tensor, Tensor]] = ()
        self._call = call = _LayersCall()
        call.hidden, call.inner, call.eps = self._hidden, first.inner, first.eps
        self._reference = ctypes.byref(call)

    def run(
        self,
        h: Tensor,
        positions: Tensor,
        caches: Sequence[tuple[Tensor, Tensor]],
        groups: Sequence[int],
        slots: Sequence[Tensor],
        planned: Sequence[PlannedAttention],
        start: int,
        stop: int,
    ) -> float | None:
        """See `LayerStack.run`."""
        rows = h.shape[0]
        first = self._layers[0]
        if h.dtype != self._dtype or not h.is_contiguous() or positions.dtype != torch.int64:
            return None
        shape = torch.Size((rows, first.num_heads, first.head_dim))
        strides = (self._projected, first.head_dim, 1)
        filled = (_Group * len(planned))()
        for index, (group, plan, group_slots) in enumerate(
            zip(filled, planned, slots, strict=True)
        ):
            keys, values = caches[groups.index(index)]
            if not isinstance(plan, NativePlannedAttention) or group_slots.dtype != torch.int64:
                return None
            if not plan.takes(h.dtype, shape, strides, keys, values):
                return None
            if plan.tree is not None:
                for layer in range(start, stop):
                    if groups[layer] == index:
                        refuse_window(plan.tree, self._layers[layer].window)
            group.attention, group.slots = ctypes.pointer(plan.call), group_slots.data_ptr()
        if caches is not self._caches:
            self._caches = caches
            for layer, (keys, values), number in zip(self._stored, caches, groups, strict=True):
                layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
                layer.group = number
        scratch = h.new_empty(rows * self._width)
        call = self._call
        call.layers = ctypes.cast(
            ctypes.byref(self._stored, start * ctypes.sizeof(_Layer)), ctypes.POINTER(_Layer)
        )
        call.groups = filled
        call.h, call.scratch, call.positions = (
            h.data_ptr(),
            scratch.data_ptr(),
            positions.data_ptr(),
        )
        call.num_layers, call.rows = stop - start, rows
        call.threads = torch.get_num_threads()
        self._function(self._reference)
        return float(call.attention_s)


def why_not_one_call(layers: Sequence[LayerTensors], packed: PackedShape | None) -> str | None:
    """Why these layers cannot run as one call over weights packed this way; None if they can."""
    if packed is None or not layers:
        return "the weights are not packed"
    first = layers[0]
    shape = (first.num_heads, first.num_kv_heads, first.head_dim, first.inner, first.eps)
    for layer in layers:
        if (layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.inner, layer.eps) != shape:
            return "the layers differ in shape"
        if any(tuple(weight.shape[2:]) != packed for weight in layer.matrices):
            return "not all weights are packed for these operators"
    return None
