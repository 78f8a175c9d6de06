"""Data that describes a model and its caches.

A `ModelSpec` is everything the decoder needs to know about an architecture; Llama, Qwen2, Qwen3 and
Mistral are values of it, not classes. Knows nothing about weights, files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
class CacheSpec:
    """The cache of one layer: a key and a value per KV head for each token."""

    num_kv_heads: int
    head_dim: int
    retention: Literal["full"] = "full"

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in one layer's cache, at `itemsize` bytes per number."""
        return 2 * self.num_kv_heads * self.head_dim * itemsize


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose caches have the same shape, so that they share one block table per request."""

    spec: CacheSpec
    layers: tuple[int, ...]


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

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """Layers of equal `CacheSpec`, in order of first appearance."""
        groups: dict[CacheSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            spec = CacheSpec(layer.mixer.num_kv_heads, layer.mixer.head_dim)
            groups.setdefault(spec, []).append(index)
        return tuple(CacheGroup(spec, tuple(layers)) for spec, layers in groups.items())

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in all layers' caches together."""
        return sum(
            group.spec.bytes_per_token(itemsize) * len(group.layers)
            for group in self.cache_groups()
        )

    def layer_parameters(self, index: int) -> int:
        """Parameters of one decoder layer, norms and biases included."""
        mixer, feed_forward = self.layers[index].mixer, self.layers[index].feed_forward
        q = mixer.num_heads * mixer.head_dim
        kv = mixer.num_kv_heads * mixer.head_dim
        hidden, inner = self.hidden_size, feed_forward.intermediate_size
        count = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden
        count += (q + 2 * kv) * mixer.qkv_bias + hidden * mixer.output_bias
        count += 2 * mixer.head_dim * mixer.qk_norm
        count += (2 * inner + hidden) * feed_forward.bias
        return count

    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied embedding is counted once."""
        embedding = self.vocab_size * self.hidden_size
        layers = sum(self.layer_parameters(index) for index in range(self.num_layers))
        return embedding * (1 if self.tie_embeddings else 2) + layers + self.hidden_size
