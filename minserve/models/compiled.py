"""The decoder with everything between two attentions compiled by torch.compile.

A layer has two graphs: one before its attention and one after it. Attention itself, which is
planned per batch over pages, stays outside, so a graph sees only rows and weights. Layers of one
shape share a graph, because weights are its inputs. The number of rows is marked as dynamic: torch
compiles once for one row and once for several, and not again for another batch. The embedding, the
unembedding and the sampler are not compiled. Knows nothing about requests or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from minserve.clock import Clock
from minserve.kernels.base import Ops
from minserve.layers import ForwardContext
from minserve.models.blocks import AttentionMixer
from minserve.models.decoder import Compilations, Decoder, DecoderLayer
from minserve.models.weights import DecoderWeights
from minserve.spec import ModelSpec

MOST_GRAPHS = 64
"""Most graphs of one function that a process may keep. Torch's own limit, also per process, is 8:
too few for several models, number formats and kinds of step."""


def before_attention(
    layer: DecoderLayer, delta: Tensor | None, residual: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of `DecoderLayer.forward`: queries, keys and values, ready for attention.

    Each is `[rows, heads, head_dim]`; `delta` is added into `residual` `[rows, hidden]` in place.
    """
    return attention_of(layer).project(layer.normed(delta, residual), positions, None)


def after_attention(layer: DecoderLayer, attended: Tensor, residual: Tensor) -> Tensor:
    """The second half: `[rows, heads, head_dim]` -> the feed-forward's output, not yet
    added to `residual`."""
    x = attention_of(layer).project_back(attended, None)
    return layer.after_mixer(x, residual, None)


def attention_of(layer: DecoderLayer) -> AttentionMixer:
    """The layer's mixer, of which `CompiledDecoder` has checked that it is attention."""
    return cast(AttentionMixer, layer.mixer)


class CompiledDecoder(Decoder):
    """A `Decoder` over torch operators whose layers run as compiled graphs."""

    __slots__ = ("_after", "_before", "_clock", "_made")

    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        ops: Ops,
        max_position: int | None,
        clock: Clock,
    ) -> None:
        super().__init__(spec, weights, ops, max_position)
        for index, layer in enumerate(self.layers):
            if not getattr(layer.mixer, "stores", False) or not hasattr(layer.mixer, "project"):
                raise ValueError(
                    f"layer {index} cannot be compiled, because its mixer is not attention over a "
                    "cache of its own: set kernels.compile=False"
                )
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, MOST_GRAPHS)
        # Only dimensions marked by `rows_vary` are dynamic: otherwise a second model in the process
        # would get graphs for weights of any size.
        self._before = torch.compile(before_attention, fullgraph=True, dynamic=False)
        self._after = torch.compile(after_attention, fullgraph=True, dynamic=False)
        self._clock = clock
        self._made = Compilations()

    def run_layers(
        self, h: Tensor, context: ForwardContext, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """See `Decoder.run_layers`. The first call with a new kind of step compiles,
        which takes seconds."""
        delta, plan, positions = None, context.plan, context.positions
        rows_vary(h, positions)
        for layer in self.layers[start:stop]:
            mixer = attention_of(layer)
            rows_vary(delta)
            q, k, v = self._watch(self._before, layer, delta, h, positions)
            plan.store(k, v, mixer.layer)
            attended, _ = plan.attend(q, mixer.layer, mixer.scores)
            rows_vary(attended)
            delta = self._watch(self._after, layer, attended, h)
        return h if delta is None else h.add_(delta)

    def take_compilations(self) -> Compilations:
        """The compilations since the last call."""
        made, self._made = self._made, Compilations()
        return made

    def _watch(self, graph: Callable[..., Any], *arguments: Any) -> Any:
        """Run a graph. If this call compiled it, record the time and whether torch found
        it in its cache."""
        before, start_s = _counted(), self._clock.now()
        result = graph(*arguments)
        after = _counted()
        if after != before:
            self._made += Compilations(
                self._clock.now() - start_s,
                after.num_graphs - before.num_graphs,
                after.num_cached - before.num_cached,
            )
        return result


def rows_vary(*tensors: Tensor | None) -> None:
    """Tell torch that the first dimension is a number of rows, which changes from step to step."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


@dataclass(frozen=True)
class _Counted:
    num_graphs: int
    num_cached: int


def _counted() -> _Counted:
    """Torch's own counts for the whole process: graphs, and graphs whose code it found on disk."""
    counters = torch._dynamo.utils.counters
    hits = counters["aot_autograd"]["autograd_cache_hit"]
    return _Counted(
        counters["stats"]["unique_graphs"], hits or counters["inductor"]["fxgraph_cache_hit"]
    )
