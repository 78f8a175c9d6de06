"""The operators of a decoder, as one interface with several implementations.

`reference.TorchOps` is plain torch, works everywhere, and is the oracle of all others. The
configuration names the implementation that an engine uses; the model and the attention backends
receive it as an argument. Knows nothing about requests, models or memory policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minserve.batch import SamplingBatch

SampleKernel = Callable[[Tensor, SamplingBatch], Tensor]
"""Draws tokens from logits `[num_samples, vocab]` of up to 32 bits, with biases and penalties
applied; the logits are not changed. Returns tokens, int64 `[num_samples]`, -1 for a row whose
logits are not numbers."""


class PlannedAttention(Protocol):
    """Attention over one step's batch, planned by `Ops.plan_attention`: called once per layer."""

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend in one layer.

        `q`: `[rows, num_heads, head_dim]` (rows may be strided); `keys`, `values`: `[num_blocks,
        num_kv_heads, block_size, head_dim]`. Query head h reads KV head `h // (num_heads //
        num_kv_heads)`. With a `window`, a query sees itself and the `window - 1` tokens before it;
        a window together with a tree raises ValueError. Returns `[rows, num_heads, head_dim]` and,
        with `need_lse`, the natural log-sum-exp of the scaled scores, float32 (float64 for float64
        inputs) `[rows, num_heads]`.
        """
        ...


class PackedShape(NamedTuple):
    """The memory layout of packed weights: see `Ops.packed_linear`."""

    width: int
    """Outputs per panel."""
    depth: int = 1
    """Inputs that are adjacent in memory: 2 if a processor multiplies pairs."""


@dataclass(frozen=True)
class LayerTensors:
    """One decoder layer as tensors and numbers, for operators that run whole layers."""

    input_norm: Tensor
    qkv: Tensor
    """Packed as for `Ops.packed_linear`, like the three other matrices."""
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    cos_sin: Tensor
    output: Tensor
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    down_bias: Tensor | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inner: int
    scale: float
    window: int | None
    eps: float

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """The four packed weights."""
        return self.qkv, self.output, self.gate_up, self.down


class LayerStack(Protocol):
    """The layers of one decoder, prepared to run in one call."""

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
        """Run layers `start` to `stop` over `h` `[rows, hidden]`, in place.

        `caches`: keys and values of every layer; `groups`: its cache group; `slots`, `planned`:
        one per group. Returns the seconds spent in attention; None, and does nothing, for a batch
        that it cannot run.
        """
        ...


class Ops(Protocol):
    """Operators over rows of a ragged batch. Unless stated otherwise, a row is one token."""

    name: str
    """The name of this implementation in `EngineConfig.kernels.backend`."""

    @property
    def sample_kernel(self) -> SampleKernel | None:
        """Sampling as one kernel; None: `sampling.Sampler` draws with torch operators."""
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`: `[rows, in]`, `[out, in]`, `[out]` -> `[rows, out]`."""
        ...

    def packed_shape(self, dtype: torch.dtype) -> PackedShape | None:
        """How to pack weights so that this implementation multiplies fastest in this number type
        (`packed_linear`); None: no packing."""
        ...

    def packed_linear(
        self, x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None
    ) -> Tensor:
        """`linear` with its weight packed.

        `packed[p, i, j, k]` is the weight of output `p * width + j` and input `i * depth + k`; the
        shape is `[ceil(out / width), ceil(in / depth), width, depth]`, filled up with zeros.
        `[rows, in]`, packed, `[out]` -> `[rows, out]`.
        """
        ...

    def packed_gated_linear(self, x: Tensor, packed: Tensor, inner: int) -> Tensor:
        """`silu_and_mul(packed_linear(x, packed, 2 * inner))`: `[rows, in]` -> `[rows, inner]`."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, accumulated in at least
        float32: `[rows, hidden]` (or `[rows, heads, head_dim]`, strided) -> same shape."""
        ...

    def rms_norm_rows(self, x: Tensor, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`rms_norm(x[rows])` of `x` `[num_rows, hidden]` and int64 `rows` `[n]`, in any order,
        repeats allowed -> `[n, hidden]`. For the rows whose logits are needed. An implementation
        may avoid copying them first."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`residual += x` in place, then `rms_norm(residual)`: `[rows, hidden]` each."""
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` of `[rows, 2 * inner]` (gate first) -> `[rows, inner]`."""
        ...

    def rotary_(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate `x` in place: `[rows, heads, head_dim]`, rows may be strided, the last two
        dimensions are contiguous. `cos_sin` is `[max_position, head_dim]`: cosines of the `head_dim
        / 2` angles, then their sines. The two halves of a head form the pairs (rotate-half, as in
        Hugging Face checkpoints). `positions` is int64 `[rows]`."""
        ...

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write each row's key and value into its slot of a layer's pages.

        `k`, `v`: `[rows, num_kv_heads, head_dim]` (rows may be strided); `keys`, `values`:
        `[num_blocks, num_kv_heads, block_size, head_dim]`; `slots`: int64 `[rows]`, where
        `slot = block * block_size + offset`.
        """
        ...

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
        """From a fused projection to rotated queries and stored keys and values, in one call.

        `heads`: `[rows, num_heads + 2 * num_kv_heads, head_dim]`, queries, keys and values of each
        row; rows may be strided. With `q_norm` and `k_norm` (`[head_dim]` each, Qwen3), query and
        key heads are RMS-normalised first. Queries are rotated in place; keys are rotated and, with
        the values, written to their slots. The contents of the key heads in `heads` are unspecified
        afterwards. The other arguments are those of `rotary_` and `store_kv`.
        """
        ...

    def plan_attention(
        self,
        block_tables: Tensor,
        query_starts: Tensor,
        kv_lens: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        tree: Tensor | None = None,
    ) -> PlannedAttention:
        """Causal attention of a ragged batch of queries over paged keys and values. Everything that
        depends only on the batch is prepared once for all layers of a step.

        Request r owns rows `query_starts[r]` to `query_starts[r + 1]` (int32 `[num_requests +
        1]`), which are the last `query_lens[r]` of its `kv_lens[r]` tokens (int32
        `[num_requests]`); `context_lens` is `kv_lens` on the host. `block_tables`: int32
        `[num_requests, max_blocks]`. With a `tree`, int64 `[rows]` masks as in `kernels.tree`,
        the rows of a request may be a speculative tree instead of a chain. See `PlannedAttention`
        for the arguments and results of the plan.
        """
        ...

    def plan_decode(
        self, block_tables: Tensor, kv_lens: Tensor, longest: int
    ) -> PlannedAttention | None:
        """A plan over static buffers with one row per request, valid for more than one step (CUDA
        graphs): pages and lengths are read from the tensors at every call, and no length may exceed
        `longest` tokens. None if this implementation reads lengths on the host."""
        ...

    def layer_stack(self, layers: Sequence[LayerTensors]) -> LayerStack | None:
        """Runs whole layers in one call, with results bit for bit equal to those of the single
        operators; None if this implementation cannot run these layers in this way."""
        ...
