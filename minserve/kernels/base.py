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
from minserve.kernels.matrix import Activation, Matrix, PackedShape, Product

SampleKernel = Callable[[Tensor, SamplingBatch], Tensor]
"""Draws tokens from logits `[num_samples, vocab]` of up to 32 bits, with biases and penalties
applied; the logits are not changed. Returns tokens, int64 `[num_samples]`, -1 for a row whose
logits are not numbers."""


class Scores(NamedTuple):
    """How one layer scores keys, and which of them a query sees."""

    scale: float
    """Factor on the dot products before the softmax."""
    window: int | None = None
    """A query sees itself and the `window - 1` tokens before it; None: all before it."""
    softcap: float | None = None
    """Scaled scores s become `softcap * tanh(s / softcap)`, between -softcap and softcap (Gemma 2,
    arXiv 2408.00118, section 2); None: they stay as they are."""


class PlannedAttention(Protocol):
    """Attention over one step's batch, planned by `Ops.plan_attention`: called once per layer."""

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend in one layer.

        `q`: `[rows, num_heads, head_dim]` (rows may be strided); `keys`, `values`: `[num_blocks,
        num_kv_heads, block_size, head_dim]`. Query head h reads KV head `h // (num_heads //
        num_kv_heads)`. A window together with a tree raises ValueError. Returns `[rows, num_heads,
        head_dim]` and, with `need_lse`, the natural log-sum-exp of the scores, float32 (float64 for
        float64 inputs) `[rows, num_heads]`.
        """
        ...


@dataclass(frozen=True)
class AttentionTensors:
    """An attention mixer as products, tensors and numbers."""

    qkv: Product
    """Queries, keys and values of all heads, in this order."""
    output: Product
    q_norm: Tensor | None
    k_norm: Tensor | None
    cos_sin: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scores: Scores
    eps: float
    """Of the heads' norms."""


@dataclass(frozen=True)
class GatedTensors:
    """A gated feed-forward as products."""

    gate_up: Product
    down: Product
    activation: Activation


@dataclass(frozen=True)
class LayerTensors:
    """One decoder layer, for operators that run whole layers."""

    input_norm: Tensor
    mixer: AttentionTensors
    mixer_norm: Tensor | None
    """Of the mixer's result, before it is added to the residual stream."""
    post_norm: Tensor
    """Of the residual stream, before the feed-forward."""
    feed_forward: GatedTensors
    feed_forward_norm: Tensor | None
    """Of the feed-forward's result, before it is added."""
    eps: float
    residual_multiplier: float
    """Factor on what mixer and feed-forward add."""


class LayerStack(Protocol):
    """The layers of one decoder, prepared to run in one call."""

    @property
    def takes(self) -> Sequence[bool]:
        """For every layer of the decoder, whether it can run in such a call."""
        ...

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
        """Run layers `start` to `stop`, all of which it `takes`, over `h` `[rows, hidden]`, in
        place.

        `caches`: keys and values of every layer; `groups`: its cache group; `slots`, `planned`:
        one per group. Returns the seconds spent in attention; None, and does nothing, for a batch
        that it cannot run. Raises ValueError for layers that it does not take, and for none.
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

    def packing(self, kind: str, dtype: torch.dtype) -> PackedShape | None:
        """How matrices of this kind (`MatrixFormat.kind`) are packed for this implementation's
        products in this number type; None: they stay canonical."""
        ...

    def product(self, matrix: Matrix) -> Product | None:
        """This implementation's product with a matrix packed as `packing` says; None if it has
        none, and the format's own numbers are multiplied (`layers.Linear`)."""
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

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """The same with GELU, approximated by tanh (Gemma)."""
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

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """Runs neighbouring layers in one call, with results bit for bit equal to those of the
        single operators. `layers`: every layer of a decoder, None where a block has no such form.
        None if this implementation can run none of them in this way."""
        ...
