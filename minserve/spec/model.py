"""A whole decoder as data: `ModelSpec`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from minserve.spec.blocks import BlockSpec, LayerSpec
from minserve.spec.caches import CacheGroup, CacheSpec
from minserve.spec.storage import UNQUANTIZED, Storage, StoragePlan


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer, as data."""

    family: str
    """Hugging Face's `model_type`: "llama", "qwen2", "gemma2"."""
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    max_position: int
    """Longest position that the checkpoint declares, in tokens."""
    tie_embeddings: bool
    dtype: str = "float32"
    """The checkpoint's own number format: "float32", "bfloat16", "float16", "float64"."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    norm_offset: float = 0.0
    """Added to every stored norm weight (Gemma stores its distance from 1)."""
    embedding_multiplier: float = 1.0
    """Factor on the embedded tokens (Gemma, Granite)."""
    rounds_embedding_multiplier: bool = False
    """That factor is rounded to the model's number format before it multiplies, as in the code that
    Gemma was published with."""
    logit_multiplier: float = 1.0
    """Factor on the logits (Granite)."""
    logit_softcap: float | None = None
    """Logits x become `cap * tanh(x / cap)` (Gemma 2); None: they stay as they are."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about contradictions in its files, or between them and transformers, and
    what minserve uses."""

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.layers):
            if layer.mixer.cache_layer is not None:
                _check_shared_cache(self.layers, index, layer.mixer.cache_layer)
            if layer.weights_of is not None:
                _check_shared_weights(self.layers, index, layer.weights_of)

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
            groups.setdefault(layer.mixer.cache, []).append(index)
        return tuple(CacheGroup(spec, tuple(layers), model) for spec, layers in groups.items())

    def up_to(self, max_len: int) -> ModelSpec:
        """The model as it acts on requests of at most `max_len` tokens: a window that no request
        outgrows hides nothing, and such a layer needs the same cache as one without a window."""
        mixers = [layer.mixer.up_to(max_len) for layer in self.layers]
        if all(new is layer.mixer for new, layer in zip(mixers, self.layers, strict=True)):
            return self
        layers = zip(self.layers, mixers, strict=True)
        return replace(self, layers=tuple(replace(layer, mixer=mixer) for layer, mixer in layers))

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token in all layers' caches together, while all of them keep it."""
        return sum(group.bytes_per_token(itemsize) for group in self.cache_groups())

    def weight_parts(self, itemsize: int, storage: StoragePlan = UNQUANTIZED) -> dict[str, int]:
        """Bytes of the weights as they are stored, by part: "mixers", "feed_forwards", "norms" (of
        the residual stream), "embedding" (none if it is tied) and "head". Vectors and biases take
        `itemsize` bytes per number; what is shared is counted once."""
        hidden = self.hidden_size
        own = [each for each in enumerate(self.layers) if each[1].weights_of is None]
        counted: dict[tuple[BlockSpec, tuple[Storage, ...]], int] = {}

        def block_bytes(index: int, block: BlockSpec) -> int:
            projections = block.projections(hidden)
            stores = tuple(storage.of(index, name) for name in projections)
            if (block, stores) not in counted:
                size = block.vector_parameters(hidden) * itemsize
                for each, store in zip(projections.values(), stores, strict=True):
                    size += each.copies * each.copy_bytes(store, itemsize)
                counted[block, stores] = size
            return counted[block, stores]

        def table(name: str) -> int:
            return storage.of(None, name).matrix_bytes(self.vocab_size, hidden, itemsize)

        num_norms = 1 + sum(layer.num_norms for _, layer in own)
        return {
            "mixers": sum(block_bytes(index, layer.mixer) for index, layer in own),
            "feed_forwards": sum(block_bytes(index, layer.feed_forward) for index, layer in own),
            "norms": num_norms * hidden * itemsize,
            "embedding": 0 if self.tie_embeddings else table("embedding"),
            "head": table("head"),
        }

    def num_parameters(self) -> int:
        """Parameters of the whole model; what is shared is counted once."""
        own = Counter(layer for layer in self.layers if layer.weights_of is None)
        layers = sum(n * layer.parameters(self.hidden_size) for layer, n in own.items())
        embedding = self.vocab_size * self.hidden_size
        return embedding * (1 if self.tie_embeddings else 2) + layers + self.hidden_size


def _check_shared_cache(layers: tuple[LayerSpec, ...], index: int, named: int) -> None:
    """Raise ValueError unless layer `index` can attend to the cache of layer `named`."""
    if not 0 <= named < index or layers[named].mixer.cache_layer is not None:
        raise ValueError(
            f"layer {index} attends to the cache of layer {named}: expected an earlier layer with "
            "a cache of its own"
        )
    mine, kept = layers[index].mixer.cache, layers[named].mixer.cache
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


def _check_shared_weights(layers: tuple[LayerSpec, ...], index: int, named: int) -> None:
    """Raise ValueError unless layer `index` can use the weights of layer `named`."""
    if not 0 <= named < index or layers[named].weights_of is not None:
        raise ValueError(
            f"layer {index} uses the weights of layer {named}: expected an earlier layer with "
            "weights of its own"
        )
    if replace(layers[index], weights_of=None) != layers[named]:
        raise ValueError(
            f"layer {index} uses the weights of layer {named}, and the two differ: expected equal "
            "mixers, feed-forwards, norms and multipliers"
        )
