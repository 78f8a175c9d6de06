"""Paged attention in C++: the arguments of one step, packed once and used by every layer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minserve.kernels.base import PlannedAttention, Scores
from minserve.kernels.reference.attention import accumulation_dtype
from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.tree import check_tree, refuse_window

ONE_THREAD_PRODUCTS = 1 << 17
"""With at most this many multiplications, attention and products use one thread: starting a second
costs a few microseconds."""

Function = Callable[..., None]


def lies_flat(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether C++ can read `shape` numbers of this type from the tensor's address on."""
    return tensor.dtype == dtype and tensor.shape == shape and tensor.is_contiguous()


class AttentionCall(ctypes.Structure):
    """`AttentionCall` in attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "out", "lse")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "query_starts", "kv_lens", "tree")),
        *((name, ctypes.c_int64) for name in ("num_requests", "max_blocks", "num_kv_heads")),
        *((name, ctypes.c_int64) for name in ("group_size", "head_dim", "block_size")),
        *((name, ctypes.c_int64) for name in ("q_stride", "block_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("window", "threads")),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
    ]


class NativePlannedAttention:
    """Attention of one step; arguments that are the same in all layers are filled in once."""

    def __init__(
        self,
        functions: dict[torch.dtype, Function],
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> None:
        check_tree(tree, query_lens)
        self.tree = None if tree is None else tree.contiguous()
        """The masks whose address C++ reads."""
        self._functions = functions
        self._batch = (block_tables, query_starts, kv_lens, query_lens, context_lens, tree)
        # The structure holds only addresses; this list keeps the tensors alive.
        self._tensors = [
            tensor.to(torch.int32).contiguous() for tensor in (block_tables, query_starts, kv_lens)
        ]
        self.rows = sum(query_lens)
        self.pairs = sum(
            rows * context for rows, context in zip(query_lens, context_lens, strict=True)
        )
        """Of a query and a key, at most, for one head."""
        self._geometry: tuple[Any, ...] = ()
        self._torch: PlannedAttention | None = None
        self.call = call = AttentionCall()
        """The arguments that C++ reads; `_takes` fills in the shape of a layer."""
        self._reference = ctypes.byref(call)
        call.block_tables, call.query_starts, call.kv_lens = (
            tensor.data_ptr() for tensor in self._tensors
        )
        call.tree = None if self.tree is None else self.tree.data_ptr()
        call.num_requests, call.max_blocks = block_tables.shape

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        refuse_window(self.tree, scores.window)
        if not self._takes(q.dtype, q.shape, q.stride(), keys, values):
            if self._torch is None:
                self._torch = TorchOps().plan_attention(*self._batch)
            return self._torch(q, keys, values, scores, need_lse)
        out = q.new_empty(*q.shape)
        lse = None
        call = self.call
        if need_lse:
            lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))
            call.lse = lse.data_ptr()
        else:
            call.lse = None
        call.q = q.data_ptr()
        call.keys = keys.data_ptr()
        call.values = values.data_ptr()
        call.out = out.data_ptr()
        call.scale = scores.scale
        call.window = scores.window or 0
        call.softcap = scores.softcap or 0.0
        self._function(self._reference)
        return out, lse

    def _takes(
        self,
        dtype: torch.dtype,
        q_shape: torch.Size,
        q_strides: tuple[int, ...],
        keys: Tensor,
        values: Tensor,
    ) -> bool:
        """Fill in a layer's shape; False if torch must compute this layer."""
        strides = keys.stride()
        cached = (keys.shape, strides, keys.dtype)
        if (values.shape, values.stride(), values.dtype) != cached:
            return False
        geometry = (dtype, q_shape, q_strides, cached)
        if geometry == self._geometry:
            return True
        rows, num_heads, head_dim = q_shape
        if (
            dtype not in self._functions
            or keys.dtype != dtype
            or rows != self.rows
            or not q_strides[1] == strides[2] == head_dim
            or not q_strides[2] == strides[3] == 1
        ):
            return False
        call = self.call
        self._function = self._functions[dtype]
        call.num_kv_heads, call.block_size, call.head_dim = keys.shape[1:]
        call.group_size = num_heads // keys.shape[1]
        call.q_stride = q_strides[0]
        call.block_stride, call.head_stride = strides[:2]
        products = self.pairs * num_heads * head_dim
        call.threads = torch.get_num_threads() if products > ONE_THREAD_PRODUCTS else 1
        self._geometry = geometry
        return True
