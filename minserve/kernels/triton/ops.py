"""`Ops` on Triton kernels; matrix products use the vendor library, through torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from minserve.batch import SamplingBatch
from minserve.kernels.base import LayerStack, LayerTensors, PlannedAttention, Scores
from minserve.kernels.matrix import Matrix, PackedShape, Product
from minserve.kernels.occupancy import num_splits
from minserve.kernels.reference.product import DenseProduct
from minserve.kernels.tree import check_tree, refuse_window
from minserve.kernels.triton import activation, norm, rotary, rotary_store, sample, store
from minserve.kernels.triton.attention import ragged_attention_kernel
from minserve.kernels.triton.decode import PARTS, merge_kernel, split_attention_kernel
from minserve.kernels.triton.tuning import Heads, Tuning

DEFAULTS = Tuning()


class TritonOps:
    """`Ops` on Triton kernels. `num_processors` decides how decode attention is split; None: the
    number of the tensors' device. `tuning` says how attention is launched. With `split=False`, no
    context of a decode is split."""

    name = "triton"

    def __init__(
        self,
        num_processors: int | None = None,
        tuning: Tuning = DEFAULTS,
        split: bool = True,
    ) -> None:
        self.num_processors = num_processors
        self.tuning = tuning
        self.split = split

    def sample_kernel(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """See `Ops.sample_kernel`."""
        return sample.sample(logits, batch)[0]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Ops.linear`."""
        return F.linear(x, weight, bias)

    def packing(self, kind: str, dtype: torch.dtype) -> PackedShape | None:
        """See `Ops.packing`: None, because the vendor library needs no packing."""
        return None

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`: dense matrices only."""
        return DenseProduct(matrix, self) if matrix.kind == "dense" else None

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """See `Ops.layer_stack`."""
        return None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        return norm.rms_norm(x, weight, eps)

    def rms_norm_rows(self, x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm_rows`."""
        return norm.rms_norm_rows(x, rows, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.add_rms_norm`."""
        return norm.add_rms_norm(x, residual, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.silu_and_mul`."""
        return activation.gate(gate_up, "silu")

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops.gelu_and_mul`."""
        return activation.gate(gate_up, "gelu_tanh")

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """See `Ops.rotary_`."""
        rotary.rotary_(x, positions, cos_sin)

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `Ops.store_kv`."""
        store.store_kv(k, v, keys, values, slots)

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
        rotary_store.rotary_store_(
            heads, positions, cos_sin, keys, values, slots, q_norm, k_norm, eps
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
        """See `Ops.plan_attention`: split over the context if every request has one row.

        A single row is never a tree, whatever its mask.
        """
        check_tree(tree, query_lens)
        if max(query_lens) == 1:
            return self.plan_decode(block_tables, kv_lens, max(context_lens))
        return RaggedAttention(block_tables, query_starts, kv_lens, query_lens, tree, self.tuning)

    def plan_decode(self, block_tables: Tensor, kv_lens: Tensor, longest: int) -> PlannedAttention:
        """See `Ops.plan_decode`: `longest` is the only length known on the host; it decides the
        number of parts."""
        processors = self.num_processors or _processors(block_tables.device)
        return SplitAttention(block_tables, kv_lens, longest, processors, self.tuning, self.split)


class RaggedAttention:
    """Attention of one step's prefill chunks and decodes; tiles are computed once per shape."""

    def __init__(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        tree: Tensor | None = None,
        tuning: Tuning = DEFAULTS,
    ) -> None:
        self._batch = block_tables, query_starts, kv_lens
        self._tuning = tuning
        self._tree = tree
        self._query_lens = np.array(query_lens)
        self._tiles: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        scale, window, softcap = scores
        refuse_window(self._tree, window)
        tables, query_starts, kv_lens = self._batch
        rows, num_heads, head_dim = q.shape
        num_kv_heads, block_size = keys.shape[1], keys.shape[2]
        group = num_heads // num_kv_heads
        dim = max(16, triton.next_power_of_2(head_dim))
        tile = self._tuning.ragged_tile(Heads(dim, q.dtype.itemsize, group))
        tile_rows = max(tile.rows, triton.next_power_of_2(group))
        tokens = tile_rows // group
        requests, starts = self._tiles_of(tokens, q.device)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty((rows, num_heads), dtype=torch.float32, device=q.device)
        ragged_attention_kernel[(requests.shape[0], num_kv_heads)](
            q, keys, values, out, lse, tables, query_starts, kv_lens, requests, starts, self._tree,
            q.stride(0), tables.stride(0), keys.stride(0), keys.stride(1), block_size, num_heads,
            head_dim, scale, window or 0,
            GROUP=group, TOKENS=tokens, ROWS=tile_rows, KEYS=tile.keys, DIM=dim,
            WINDOW=window is not None, TREE=self._tree is not None, SOFTCAP=softcap or 0.0,
            LSE=need_lse, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return out, lse if need_lse else None

    def _tiles_of(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Request and first token of every tile of `tokens` tokens, int32 each."""
        if tokens not in self._tiles:
            counts = -(-self._query_lens // tokens)
            requests = np.repeat(np.arange(len(counts)), counts)
            first = np.cumsum(counts) - counts
            # Each begins at a multiple of 16 bytes, as Triton expects of addresses.
            both = np.zeros((2, -(-len(requests) // 4) * 4), dtype=np.int32)
            both[0, : len(requests)] = requests
            both[1, : len(requests)] = (np.arange(len(requests)) - first[requests]) * tokens
            host = torch.from_numpy(both)
            if device.type == "cuda":
                # From unpinned memory the copy may wait for the device, and the host with it. torch
                # keeps pinned memory until the work queued with it is done.
                host = host.pin_memory()
            tiles = host.to(device, non_blocking=True)[:, : len(requests)]
            self._tiles[tokens] = tiles[0], tiles[1]
        return self._tiles[tokens]


class SplitAttention:
    """Attention of one step in which every request has one row."""

    def __init__(
        self,
        block_tables: Tensor,
        kv_lens: Tensor,
        longest: int,
        num_processors: int,
        tuning: Tuning = DEFAULTS,
        split: bool = True,
    ) -> None:
        self._tuning = tuning
        self._batch = block_tables, kv_lens
        self._longest = longest
        self._num_processors = num_processors
        self._split = split

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        scale, window, softcap = scores
        tables, kv_lens = self._batch
        rows, num_heads, head_dim = q.shape
        num_kv_heads, block_size = keys.shape[1], keys.shape[2]
        group = num_heads // num_kv_heads
        dim = max(16, triton.next_power_of_2(head_dim))
        heads = Heads(dim, q.dtype.itemsize, group)
        tile = self._tuning.split_tile(heads, capability_of(q.device))
        longest = self._longest if window is None else min(self._longest, window)
        at_once = self._num_processors * tile.programs
        splits = 1
        if self._split:
            splits = num_splits(rows * num_kv_heads, longest, at_once, tile.keys)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty((rows, num_heads), dtype=torch.float32, device=q.device)
        parts, part_lse = out, lse  # A single part needs no merge.
        if splits > 1:
            shape = (rows, num_heads, splits)
            parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
            part_lse = torch.empty(shape, dtype=torch.float32, device=q.device)
        split_attention_kernel[(rows, num_kv_heads, splits)](
            q, keys, values, parts, part_lse, tables, kv_lens,
            q.stride(0), tables.stride(0), keys.stride(0), keys.stride(1), block_size, num_heads,
            head_dim, scale, window or 0, splits,
            GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), KEYS=tile.keys, DIM=dim,
            WINDOW=window is not None, SOFTCAP=softcap or 0.0,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if splits > 1:
            merge_kernel[(rows * num_heads,)](
                parts, part_lse, out, lse, splits, head_dim,
                PARTS=PARTS, DIM=dim, LSE=need_lse, num_warps=1,
            )  # fmt: skip
        return out, lse if need_lse else None


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def capability_of(device: torch.device) -> int:
    """Compute capability times ten; 9.0's in the interpreter, so that splits are those of a GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
