"""The one decoder: Llama, Qwen2, Qwen3 and Mistral are values of `ModelSpec` that it runs.

Its primitives are `embed`, `run_layers(start, stop)` and `head`. **Between layers `h` is always the
whole residual stream**, with nothing left to add, so a forward pass may be split at any layer:
early exit and self-drafting apply `head` to an inner `h`, pipelines send it to another process.
Inside `run_layers` each residual addition is fused with the norm that follows; the last one is not
fused, which costs one small operator per call. Knows nothing about requests, sampling or pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minserve.attention.base import AttentionPlan
from minserve.batch import ForwardBatch
from minserve.kernels.base import Ops
from minserve.layers import AttentionMixer, GatedFeedForward, RMSNorm, rotary_table
from minserve.models.stack import layer_tensors
from minserve.models.weights import DecoderWeights
from minserve.spec import ModelSpec


@dataclass(frozen=True)
class Compilations:
    """The compilations of a decoder since the last call of `take_compilations`."""

    seconds: float = 0.0
    num_graphs: int = 0
    num_cached: int = 0
    """The part of `num_graphs` whose machine code torch found in its cache on disk."""

    def __add__(self, other: Compilations) -> Compilations:
        return Compilations(
            self.seconds + other.seconds,
            self.num_graphs + other.num_graphs,
            self.num_cached + other.num_cached,
        )


class DecoderLayer:
    """A mixer and a feed-forward, each after its norm."""

    __slots__ = ("feed_forward", "input_norm", "mixer", "ops", "post_norm")

    def __init__(
        self,
        input_norm: RMSNorm,
        mixer: AttentionMixer,
        post_norm: RMSNorm,
        feed_forward: GatedFeedForward,
        ops: Ops,
    ) -> None:
        self.input_norm = input_norm
        self.mixer = mixer
        self.post_norm = post_norm
        self.feed_forward = feed_forward
        self.ops = ops

    def forward(
        self, delta: Tensor | None, residual: Tensor, plan: AttentionPlan, positions: Tensor
    ) -> Tensor:
        """Add `delta` (the previous layer's feed-forward output) and this layer's attention into
        `residual` in place; return this layer's feed-forward output, which is still to be added."""
        ops = self.ops
        if delta is None:
            x = self.input_norm.apply(ops, residual)
        else:
            x = self.input_norm.add_apply(ops, delta, residual)
        x = self.mixer.forward(x, plan, positions)
        x = self.post_norm.add_apply(ops, x, residual)
        return self.feed_forward.forward(x)


class Decoder:
    """A model bound to one engine's operators. The weights stay shared and read-only."""

    __slots__ = ("_stack", "layers", "max_position", "ops", "spec", "weights")

    def __init__(
        self, spec: ModelSpec, weights: DecoderWeights, ops: Ops, max_position: int | None = None
    ) -> None:
        """`max_position`: longest sequence that will be run, in tokens (an engine's
        `max_model_len`); None: the checkpoint's. Larger positions are out of bounds."""
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.max_position = spec.max_position if max_position is None else max_position
        tables: dict[int, Tensor] = {}
        layers = []
        for index, (layer, stored) in enumerate(zip(spec.layers, weights.layers, strict=True)):
            head_dim = layer.mixer.head_dim
            if head_dim not in tables:
                tables[head_dim] = rotary_table(
                    spec.rope, head_dim, self.max_position, weights.dtype, weights.device
                )
            mixer = AttentionMixer(
                layer.mixer,
                index,
                stored.qkv,
                stored.output,
                stored.q_norm,
                stored.k_norm,
                tables[head_dim],
                ops,
            )
            feed_forward = GatedFeedForward(stored.gate_up, stored.down, ops)
            layers.append(
                DecoderLayer(stored.input_norm, mixer, stored.post_norm, feed_forward, ops)
            )
        self.layers = tuple(layers)
        tensors = layer_tensors(spec, weights, tables)
        self._stack = None if tensors is None else ops.layer_stack(tensors)

    @property
    def runs_in_one_call(self) -> bool:
        """Whether the operators run whole layers (`Ops.layer_stack`)."""
        return self._stack is not None

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 `[num_tokens]` -> the residual stream `[num_tokens, hidden_size]`, a new tensor."""
        return self.weights.embedding.apply(token_ids)

    def run_layers(
        self,
        h: Tensor,
        plan: AttentionPlan,
        positions: Tensor,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Run layers `start` to `stop` (exclusive; None: to the last) over the residual stream.

        `h` is `[num_tokens, hidden_size]`, updated in place and returned: clone it first to keep
        the stream before these layers. `positions`: int64 `[num_tokens]`.
        """
        stop = len(self.layers) if stop is None else stop
        stack = self._stack
        if stack and start < stop and plan.run_stack(stack, h, positions, start, stop) is not None:
            return h
        delta = None
        for layer in self.layers[start:stop]:
            delta = layer.forward(delta, h, plan, positions)
        return h if delta is None else h.add_(delta)

    def head(self, h: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows of the residual stream `[num_tokens, hidden_size]` -> logits `[n, vocab_size]`.

        Applies final norm and unembedding to `rows`, int64 `[n]` (None: to all). Callers name the
        rows they need and split them into chunks, because logits are the largest activation.
        """
        ops, weights = self.ops, self.weights
        norm = weights.final_norm
        x = norm.apply(ops, h) if rows is None else norm.apply_rows(ops, h, rows)
        return weights.head.apply(ops, x)

    def take_compilations(self) -> Compilations:
        """The compilations since the last call: none, because operators run uncompiled."""
        return Compilations()

    def forward(self, batch: ForwardBatch, plan: AttentionPlan) -> Tensor:
        """`embed` and all layers: the residual stream `[num_tokens, hidden_size]` of a batch."""
        return self.run_layers(self.embed(batch.token_ids), plan, batch.positions)
