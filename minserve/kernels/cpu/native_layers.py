"""Neighbouring decoder layers in one call, which saves time around the arithmetic.

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

from minserve.kernels.base import LayerTensors, PlannedAttention
from minserve.kernels.cpu.native_attention import (
    AttentionCall,
    Function,
    NativePlannedAttention,
    lies_flat,
)
from minserve.kernels.cpu.native_products import ACTIVATIONS, NativeProduct
from minserve.kernels.matrix import Product
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.tree import refuse_window

Cache = tuple[Tensor, Tensor]


class _Layer(ctypes.Structure):
    """`Layer` in layers.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input_norm", "mixer_norm", "post_norm")),
        *((name, ctypes.c_void_p) for name in ("feed_forward_norm", "q_norm", "k_norm", "cos_sin")),
        *((name, ctypes.c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("group", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int64) for name in ("block_size", "block_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("window", "activation")),
        *((name, ctypes.c_double) for name in ("scale", "softcap", "eps", "head_eps")),
        ("residual_multiplier", ctypes.c_double),
    ]


class _Group(ctypes.Structure):
    """`Group` in layers.h."""

    _fields_ = [
        ("attention", ctypes.POINTER(AttentionCall)),
        ("slots", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
    ]


class _LayersCall(ctypes.Structure):
    """`LayersCall` in layers.h."""

    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("groups", ctypes.POINTER(_Group)),
        *((name, ctypes.c_void_p) for name in ("h", "scratch", "positions")),
        *((name, ctypes.c_int64) for name in ("num_layers", "rows", "hidden", "threads")),
        ("attention_s", ctypes.c_double),
    ]


class NativeLayers:
    """`LayerStack` in C++: the layers of one decoder, whose tensors it keeps alive.

    Takes a layer if all its tensors are in one number type that the C++ code knows, its matrices
    are packed, and its gate has no bias. Layers may differ in everything but the hidden size.
    """

    def __init__(
        self, functions: dict[torch.dtype, Function], layers: Sequence[LayerTensors | None]
    ) -> None:
        self._layers = tuple(layers)
        norms = [layer.input_norm for layer in layers if layer is not None]
        self._dtype = norms[0].dtype if norms else torch.float32
        self._hidden = norms[0].shape[0] if norms else 0
        known = self._dtype in functions
        self.takes = tuple(
            known and layer is not None and _fits(layer, self._hidden, self._dtype)
            for layer in layers
        )
        """See `LayerStack.takes`."""
        self._stored: Any = (_Layer * len(layers))()
        widest = 0
        for stored, layer, taken in zip(self._stored, layers, self.takes, strict=True):
            if taken and layer is not None:
                widest = max(widest, _fill(stored, layer))
        # Normed rows, the rows to be added, and what the widest mixer or feed-forward needs.
        self._width = 2 * self._hidden + widest
        self._function = functions.get(self._dtype)
        self._address = ctypes.addressof(self._stored)
        self._caches: Sequence[Cache] = ()
        self._caches_fit = False
        self._groups: dict[tuple[int, int], tuple[int, ...]] = {}
        self._call = call = _LayersCall()
        call.hidden = self._hidden
        self._reference = ctypes.byref(call)

    def run(
        self,
        h: Tensor,
        positions: Tensor,
        caches: Sequence[Cache],
        groups: Sequence[int],
        slots: Sequence[Tensor],
        planned: Sequence[PlannedAttention],
        start: int,
        stop: int,
    ) -> float | None:
        """See `LayerStack.run`."""
        rows = len(h)
        if caches is not self._caches:
            self._use(caches, groups)
        if (
            self._function is None
            or not self._caches_fit
            or not lies_flat(h, self._dtype, (rows, self._hidden))
            or not lies_flat(positions, torch.int64, (rows,))
        ):
            return None
        used = self._groups.get((start, stop))
        if used is None:
            if not any(self.takes[start:stop]) or not all(self.takes[start:stop]):
                raise ValueError(
                    f"layers {start} to {stop} cannot run in one call: name neighbours of which "
                    "`takes` is true"
                )
            used = self._groups[start, stop] = tuple(sorted(set(groups[start:stop])))
        filled = (_Group * len(planned))()
        for index in used:
            group, plan, group_slots = filled[index], planned[index], slots[index]
            if (
                not isinstance(plan, NativePlannedAttention)
                or plan.rows != rows
                or not lies_flat(group_slots, torch.int64, (rows,))
            ):
                return None
            if plan.tree is not None:
                self._refuse_windows(plan.tree, groups, index, start, stop)
            group.attention = ctypes.pointer(plan.call)
            group.slots = group_slots.data_ptr()
            group.pairs = plan.pairs
        scratch = h.new_empty(rows * self._width)
        call = self._call
        call.layers = self._address + start * ctypes.sizeof(_Layer)
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

    def _use(self, caches: Sequence[Cache], groups: Sequence[int]) -> None:
        """Fill in the pages of all layers that are taken."""
        self._caches, self._groups = caches, {}
        self._caches_fit = True
        for taken, stored, (keys, values), group in zip(
            self.takes, self._stored, caches, groups, strict=True
        ):
            if not taken:
                continue
            strides = keys.stride()
            self._caches_fit &= (
                keys.dtype == values.dtype == self._dtype
                and values.shape == keys.shape
                and values.stride() == strides
                and strides[2:] == (keys.shape[3], 1)
                and keys.shape[1] == stored.kv_heads
                and keys.shape[3] == stored.head_dim
            )
            stored.keys, stored.values = keys.data_ptr(), values.data_ptr()
            stored.group, stored.block_size = group, keys.shape[2]
            stored.block_stride, stored.head_stride = strides[:2]

    def _refuse_windows(
        self, tree: Tensor, groups: Sequence[int], group: int, start: int, stop: int
    ) -> None:
        for index in range(start, stop):
            layer = self._layers[index]
            if groups[index] == group and layer is not None:
                refuse_window(tree, layer.mixer.scores.window)


def _fits(layer: LayerTensors, hidden: int, dtype: torch.dtype) -> bool:
    mixer, gated, angles = layer.mixer, layer.feed_forward, layer.mixer.cos_sin
    products = mixer.qkv, mixer.output, gated.gate_up, gated.down
    projected = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
    attended, inner = mixer.num_heads * mixer.head_dim, gated.down.matrix.inputs
    shapes = (projected, hidden), (hidden, attended), (2 * inner, hidden), (hidden, inner)
    norms = [(mixer.head_dim, norm) for norm in (mixer.q_norm, mixer.k_norm)]
    norms += [(hidden, norm) for norm in (layer.input_norm, layer.mixer_norm)]
    norms += [(hidden, norm) for norm in (layer.post_norm, layer.feed_forward_norm)]
    return (
        all(isinstance(each, NativeProduct) and each.matrix.dtype == dtype for each in products)
        and shapes == tuple((each.matrix.outputs, each.matrix.inputs) for each in products)
        and gated.gate_up.matrix.bias is None
        and all(norm is None or lies_flat(norm, dtype, (size,)) for size, norm in norms)
        and (mixer.q_norm is None) == (mixer.k_norm is None)
        and lies_flat(angles, accumulation_dtype(dtype), (len(angles), mixer.head_dim))
    )


def _fill(stored: Any, layer: LayerTensors) -> int:
    """Store a layer's addresses and numbers; returns how many numbers per row it computes in
    between."""
    mixer, gated = layer.mixer, layer.feed_forward
    for name in ("input_norm", "mixer_norm", "post_norm", "feed_forward_norm"):
        setattr(stored, name, _address(getattr(layer, name)))
    for name in ("q_norm", "k_norm", "cos_sin"):
        setattr(stored, name, _address(getattr(mixer, name)))
    stored.qkv, stored.output = _matrix(mixer.qkv), _matrix(mixer.output)
    stored.gate_up, stored.down = _matrix(gated.gate_up), _matrix(gated.down)
    stored.heads, stored.kv_heads = mixer.num_heads, mixer.num_kv_heads
    stored.head_dim = mixer.head_dim
    scores = mixer.scores
    stored.scale, stored.softcap = scores.scale, scores.softcap or 0.0
    stored.window = scores.window or 0
    stored.activation = ACTIVATIONS[gated.activation]
    stored.eps, stored.head_eps = layer.eps, mixer.eps
    stored.residual_multiplier = layer.residual_multiplier
    attention = mixer.qkv.matrix.outputs + mixer.output.matrix.inputs
    return max(attention, 3 * gated.down.matrix.inputs)


def _matrix(product: Product) -> int:
    assert isinstance(product, NativeProduct)
    return product.address


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
