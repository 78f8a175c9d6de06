"""Data that describes a model and its caches.

A `ModelSpec` is everything the decoder needs to know about an architecture; Llama, Qwen2, Qwen3 and
Mistral are values of it, not classes. Knows nothing about weights, files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Retention = Literal["full", "window"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al., arXiv 2104.09864) and its scaling.

    `kind` names the scaling; the other fields are read only by the kinds that use them and have the
    names of Hugging Face's `rope_parameters`.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class AttentionSpec:
    """One attention mixer. Queries are `[num_tokens, num_heads, head_dim]`, keys and values
    `[num_tokens, num_kv_heads, head_dim]`; `num_heads // num_kv_heads` queries share a KV head
    (grouped-query attention, Ainslie et al., arXiv 2305.13245)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    """Sliding window in tokens: a query sees itself and the `window - 1` tokens before it."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    cache_layer: int | None = None
    """An earlier layer whose keys and values it attends to; it projects queries only and stores
    nothing (cross-layer attention, Brandon et al., arXiv 2405.12981). None: its own."""

    @property
    def projected_heads(self) -> int:
        """Heads of the fused projection: queries, and the keys and values it stores."""
        return self.num_heads + (2 * self.num_kv_heads if self.cache_layer is None else 0)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scale(self) -> float:
        """Factor on the dot products before the softmax."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True)
class FeedForwardSpec:
    """Gated feed-forward: `down(silu(gate(x)) * up(x))` (SwiGLU, Shazeer, arXiv 2002.05202)."""

    intermediate_size: int
    bias: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: a mixer and a feed-forward, each behind an RMSNorm and a residual."""

    mixer: AttentionSpec
    feed_forward: FeedForwardSpec


@dataclass(frozen=True)
class CacheTensor:
    """Something a layer keeps for every token: `[num_heads, head_dim]`."""

    name: str
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer: what it keeps for each token, and for how long."""

    tensors: tuple[CacheTensor, ...]
    window: int | None = None
    """A token is not read any more once this many tokens have come after it. None: it is kept as
    long as its request."""

    @classmethod
    def of(cls, mixer: AttentionSpec) -> CacheSpec:
        """The cache of an attention mixer: a key and a value per KV head."""
        heads, dim = mixer.num_kv_heads, mixer.head_dim
        tensors = (CacheTensor("key", heads, dim), CacheTensor("value", heads, dim))
        return cls(tensors, mixer.window)

    @property
    def retention(self) -> Retention:
        """How pages of this cache are kept (`memory.groups`)."""
        return "full" if self.window is None else "window"

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in one layer's cache, at `itemsize` bytes per number."""
        return sum(each.num_heads * each.head_dim for each in self.tensors) * itemsize


@dataclass(frozen=True)
class CacheGroup:
    """Layers of one model with equal caches, so that they share one block table per request."""

    spec: CacheSpec
    layers: tuple[int, ...]
    model: str = ""
    """Whose layers these are: "" is the model that is served. A draft model beside it has a name of
    its own."""

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in all layers of the group, at `itemsize` bytes per number."""
        return self.spec.bytes_per_token(itemsize) * len(self.layers)


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer, as data."""

    family: str
    """Hugging Face's `model_type`: "llama", "qwen2", "qwen3", "mistral"."""
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    rope: RopeSpec
    max_position: int
    """Longest position that the checkpoint declares, in tokens."""
    tie_embeddings: bool
    dtype: str = "float32"
    """The checkpoint's own number format: "float32", "bfloat16", "float16", "float64"."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about contradictions in its files, or between them and transformers, and
    what minserve uses."""

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.layers):
            if layer.mixer.cache_layer is not None:
                _check_shared(self.layers, index, layer.mixer.cache_layer)

    def cache_layer(self, index: int) -> int:
        """The layer whose cache layer `index` attends to: itself, or the one it names."""
        named = self.layers[index].mixer.cache_layer
        return index if named is None else named

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def cache_groups(self, model: str = "") -> tuple[CacheGroup, ...]:
        """Layers of equal `CacheSpec`, in order of first appearance; `model` names this model
        beside others of the same engine (`CacheGroup.model`). A layer that attends to another's
        cache is in no group."""
        groups: dict[CacheSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if layer.mixer.cache_layer is not None:
                continue
            groups.setdefault(CacheSpec.of(layer.mixer), []).append(index)
        return tuple(CacheGroup(spec, tuple(layers), model) for spec, layers in groups.items())

    def up_to(self, max_len: int) -> ModelSpec:
        """The model as it acts on requests of at most `max_len` tokens: a window that no request
        outgrows hides nothing, and such a layer needs the same cache as one without a window."""
        layers = tuple(
            replace(layer, mixer=replace(layer.mixer, window=None))
            if layer.mixer.window is not None and layer.mixer.window >= max_len
            else layer
            for layer in self.layers
        )
        return self if layers == self.layers else replace(self, layers=layers)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in all layers' caches together, while all of them keep it."""
        return sum(group.bytes_per_token(itemsize) for group in self.cache_groups())

    def layer_parameters(self, index: int) -> int:
        """Parameters of one decoder layer, norms and biases included."""
        mixer, feed_forward = self.layers[index].mixer, self.layers[index].feed_forward
        q = mixer.num_heads * mixer.head_dim
        qkv = mixer.projected_heads * mixer.head_dim
        hidden, inner = self.hidden_size, feed_forward.intermediate_size
        count = hidden * qkv + q * hidden + 3 * hidden * inner + 2 * hidden
        count += qkv * mixer.qkv_bias + hidden * mixer.output_bias
        count += (2 if mixer.cache_layer is None else 1) * mixer.head_dim * mixer.qk_norm
        count += (2 * inner + hidden) * feed_forward.bias
        return count

    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied embedding is counted once."""
        embedding = self.vocab_size * self.hidden_size
        layers = sum(self.layer_parameters(index) for index in range(self.num_layers))
        return embedding * (1 if self.tie_embeddings else 2) + layers + self.hidden_size


def _check_shared(layers: tuple[LayerSpec, ...], index: int, named: int) -> None:
    """Raise ValueError unless layer `index` can attend to the cache of layer `named`."""
    if not 0 <= named < index or layers[named].mixer.cache_layer is not None:
        raise ValueError(
            f"layer {index} attends to the cache of layer {named}: expected an earlier layer with "
            "a cache of its own"
        )
    mine, kept = CacheSpec.of(layers[index].mixer), CacheSpec.of(layers[named].mixer)
    if mine.tensors != kept.tensors:
        raise ValueError(
            f"layer {index} attends to the cache of layer {named}, whose heads have another shape: "
            f"{kept.tensors} instead of {mine.tensors}"
        )
    if kept.window is not None and (mine.window is None or mine.window > kept.window):
        raise ValueError(
            f"layer {index} sees {mine.window or 'all'} tokens, and layer {named}, to whose cache "
            f"it attends, keeps {kept.window}: expected a window that is no larger"
        )
