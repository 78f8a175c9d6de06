"""The one decoder: every family is a value of `ModelSpec` that it runs.

Its primitives are `embed`, `run_layers(start, stop)`, `store_layers(start, stop)` and `head`.
**Between layers `h` is always the whole residual stream**, with nothing left to add, so a forward
pass may be split at any layer: early exit and self-drafting apply `head` to an inner `h`, pipelines
send it to another process. Inside `run_layers` each residual addition is fused with the norm that
follows; the last one is not fused, which costs one small operator per call. Neighbouring layers
that the operators run in one call are run so. Knows nothing about requests, sampling or pages, nor
which blocks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from minserve.attention.base import AttentionPlan
from minserve.batch import ForwardBatch
from minserve.kernels.base import LayerTensors, Ops
from minserve.layers import ForwardContext, Linear, RMSNorm, rotary_table
from minserve.models.blocks.base import Binding, FeedForward, Mixer, feed_forward_block, mixer_block
from minserve.models.weights import DecoderWeights, LayerWeights
from minserve.spec import LayerSpec, ModelSpec, RopeSpec


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

    __slots__ = (
        "_plain",
        "feed_forward",
        "feed_forward_norm",
        "input_norm",
        "mixer",
        "mixer_norm",
        "multiplier",
        "ops",
        "post_norm",
    )

    def __init__(self, spec: LayerSpec, weights: LayerWeights, binding: Binding) -> None:
        self.input_norm = weights.input_norm
        self.mixer: Mixer = mixer_block(spec.mixer).bind(weights.mixer, binding)
        self.mixer_norm = weights.mixer_norm
        self.post_norm = weights.post_norm
        block = feed_forward_block(spec.feed_forward)
        self.feed_forward: FeedForward = block.bind(weights.feed_forward, binding)
        self.feed_forward_norm = weights.feed_forward_norm
        self.multiplier = spec.residual_multiplier
        self.ops = binding.ops
        self._plain = self.multiplier == 1.0 and not spec.sandwich_norms

    def forward(self, delta: Tensor | None, residual: Tensor, context: ForwardContext) -> Tensor:
        """Add `delta` (the previous layer's feed-forward output) and this layer's mixer into
        `residual` in place; return this layer's feed-forward output, which is still to be added."""
        x = self.mixer.forward(self.normed(delta, residual), context)
        return self.after_mixer(x, residual, context)

    def normed(self, delta: Tensor | None, residual: Tensor) -> Tensor:
        """The mixer's input, once `delta` is added into `residual`."""
        if delta is None:
            return self.input_norm.apply(self.ops, residual)
        return self.input_norm.add_apply(self.ops, delta, residual)

    def after_mixer(self, x: Tensor, residual: Tensor, context: ForwardContext | None) -> Tensor:
        """From the mixer's output to the feed-forward's, which is still to be added."""
        plain = self._plain
        if not plain:
            x = self._scaled(x, self.mixer_norm)
        x = self.feed_forward.forward(self.post_norm.add_apply(self.ops, x, residual), context)
        return x if plain else self._scaled(x, self.feed_forward_norm)

    def tensors(self) -> LayerTensors | None:
        """Its form for operators that run whole layers; None if a block has none."""
        mixer, feed_forward = self.mixer.tensors(), self.feed_forward.tensors()
        if mixer is None or feed_forward is None:
            return None
        norms = self.mixer_norm, self.feed_forward_norm
        return LayerTensors(
            input_norm=self.input_norm.weight,
            mixer=mixer,
            mixer_norm=None if norms[0] is None else norms[0].weight,
            post_norm=self.post_norm.weight,
            feed_forward=feed_forward,
            feed_forward_norm=None if norms[1] is None else norms[1].weight,
            eps=self.input_norm.eps,
            residual_multiplier=self.multiplier,
        )

    def _scaled(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        if norm is not None:
            x = norm.apply(self.ops, x)
        return x if self.multiplier == 1.0 else x.mul_(self.multiplier)


class Decoder:
    """A model bound to one engine's operators and the device of its weights."""

    __slots__ = ("_head", "_segments", "_stack", "layers", "max_position", "ops", "spec", "weights")

    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        ops: Ops,
        max_position: int | None = None,
    ) -> None:
        """`max_position`: the longest sequence to be run, in tokens (None: as long as the model
        declares). Rotary tables are made for it."""
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.max_position = max_position or spec.max_position
        tables: dict[tuple[RopeSpec | None, int], Tensor] = {}

        def rotary(rope: RopeSpec | None, head_dim: int) -> Tensor:
            if (rope, head_dim) not in tables:
                tables[rope, head_dim] = rotary_table(
                    rope, head_dim, self.max_position, weights.dtype, weights.device
                )
            return tables[rope, head_dim]

        self.layers = tuple(
            DecoderLayer(layer, stored, Binding(index, ops, rotary))
            for index, (layer, stored) in enumerate(zip(spec.layers, weights.layers, strict=True))
        )
        self._head = Linear(weights.head, ops)
        self._stack = ops.layer_stack([layer.tensors() for layer in self.layers])
        takes = (False,) * spec.num_layers if self._stack is None else self._stack.takes
        self._segments = tuple(_segments(takes))

    @property
    def runs_in_one_call(self) -> bool:
        """Whether the operators run all layers in one call (`Ops.layer_stack`)."""
        return [together for *_, together in self._segments] == [True]

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 `[num_tokens]` -> the residual stream `[num_tokens, hidden_size]`, a new tensor."""
        return self.weights.embedding.apply(token_ids)

    def run_layers(
        self, h: Tensor, context: ForwardContext, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Run layers `start` to `stop` (exclusive; None: to the last) over the residual stream.

        `h` is `[num_tokens, hidden_size]`, updated in place and returned: clone it first to keep
        the stream before these layers.
        """
        stop = len(self.layers) if stop is None else stop
        stack = self._stack
        for first, last, together in self._segments:
            first, last = max(first, start), min(last, stop)
            if first >= last:
                continue
            if together and stack is not None:
                plan, positions = context.plan, context.positions
                if plan.run_stack(stack, h, positions, first, last) is not None:
                    continue
            self._run_one_by_one(h, context, first, last)
        return h

    def _run_one_by_one(self, h: Tensor, context: ForwardContext, start: int, stop: int) -> None:
        delta = None
        for layer in self.layers[start:stop]:
            delta = layer.forward(delta, h, context)
        if delta is not None:
            h.add_(delta)

    def store_layers(
        self, h: Tensor, context: ForwardContext, start: int, stop: int | None = None
    ) -> None:
        """Store what the caches of layers `start` to `stop` keep of these rows, as if `h` were the
        residual stream before each of them, and compute nothing else of these layers.

        For rows that leave the decoder early: later tokens attend to them in every layer (state
        propagation, Elbayad et al., arXiv 1910.10073, section 3; CALM, arXiv 2207.07061).
        """
        for layer in self.layers[start:stop]:
            layer.mixer.store(layer.normed(None, h), context)

    def head(self, h: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows of the residual stream `[num_tokens, hidden_size]` -> logits `[n, vocab_size]`.

        Applies final norm and unembedding to `rows`, int64 `[n]` (None: to all). Callers name the
        rows they need and split them into chunks, because logits are the largest activation.
        """
        ops, spec, norm = self.ops, self.spec, self.weights.final_norm
        x = norm.apply(ops, h) if rows is None else norm.apply_rows(ops, h, rows)
        logits = self._head.apply(None, x)
        if spec.logit_multiplier != 1.0:
            logits.mul_(spec.logit_multiplier)
        if spec.logit_softcap is not None:
            logits.div_(spec.logit_softcap).tanh_().mul_(spec.logit_softcap)
        return logits

    def take_compilations(self) -> Compilations:
        """The compilations since the last call: none, because operators run uncompiled."""
        return Compilations()

    def forward(self, batch: ForwardBatch, plan: AttentionPlan) -> Tensor:
        """`embed` and all layers: the residual stream `[num_tokens, hidden_size]` of a batch."""
        return self.run_layers(self.embed(batch.token_ids), ForwardContext(batch, plan))


def _segments(takes: Sequence[bool]) -> Iterator[tuple[int, int, bool]]:
    """Neighbouring layers that run in one call, or that do not: (first, last + 1, in one call)."""
    start = 0
    for together, layers in groupby(takes):
        stop = start + len(list(layers))
        yield start, stop, together
        start = stop
