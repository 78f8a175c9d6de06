"""From a Hugging Face `config.json` to a `ModelSpec`: one entry per family, one reader for all.

A family describes what its modelling code in transformers fixes (which projections have a bias,
whether heads are normalised, which layers have a window) and the defaults of its configuration
class for missing keys. A feature that this decoder does not have is refused by name; no key that
would change a logit is ignored. Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minserve.files.json_file import shorten
from minserve.models.loading.config_file import ConfigFile
from minserve.models.loading.rope_config import read_rope
from minserve.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec

_MOST_LAYERS = 10_000
_MOST_HEADS = 1 << 16
_LARGEST_HEAD = 1 << 14
_SMALLEST_EPS = 1e-20
"""With a smaller epsilon, 1 / sqrt(epsilon) of a row of zeros overflows float32."""
Windows = Callable[[ConfigFile, int], list[int | None]]
"""Sliding window of each layer, in tokens, for a number of layers; None attends to everything."""


def _no_windows(config: ConfigFile, num_layers: int) -> list[int | None]:
    return [None] * num_layers


def _same_window(config: ConfigFile, num_layers: int) -> list[int | None]:
    window = config.optional_integer("sliding_window")
    wanted = "full_attention" if window is None else "sliding_attention"
    kinds = config.get("layer_types")
    if kinds is not None and kinds != [wanted] * num_layers:
        # transformers ignores layer_types here and runs another model than the file describes.
        raise config.error(
            "layer_types",
            f"every layer {wanted!r} in this family with sliding_window={window}",
            "remove layer_types, or name the family that mixes layers",
        )
    return [window] * num_layers


def _qwen_windows(config: ConfigFile, num_layers: int) -> list[int | None]:
    window = (
        config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    )
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.integer("max_window_layers", at_least=0)
        return [window if index >= first else None for index in range(num_layers)]
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or any(kind not in known for kind in kinds)
    ):
        raise config.error(
            "layer_types", f"{num_layers} names out of {', '.join(known)}", "correct the list"
        )
    if "sliding_attention" in kinds and window is None:
        raise config.error(
            "layer_types",
            "no 'sliding_attention' while use_sliding_window is off or sliding_window is null",
            "set use_sliding_window and sliding_window, or name those layers 'full_attention'",
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


@dataclass(frozen=True)
class Family:
    """The assumptions of transformers' code for one `model_type`."""

    windows: Windows
    qkv_bias: bool | None = None
    """None: read `attention_bias`."""
    output_bias: bool | None = None
    """None: read `attention_bias`."""
    feed_forward_bias: bool | None = False
    """None: read `mlp_bias`."""
    qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The configuration class's values for keys missing in the file."""


_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_LLAMA_DEFAULTS = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, Family] = {
    "llama": Family(_no_windows, feed_forward_bias=None, defaults=_LLAMA_DEFAULTS),
    "mistral": Family(
        _same_window,
        qkv_bias=False,
        output_bias=False,
        defaults=_LLAMA_DEFAULTS
        | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "qwen2": Family(_qwen_windows, qkv_bias=True, output_bias=False, defaults=_QWEN_DEFAULTS),
    "qwen3": Family(_qwen_windows, qk_norm=True, defaults=_QWEN_DEFAULTS | {"head_dim": 128}),
}
"""By Hugging Face's `model_type`. To add a family with the same kinds of layers, add an
entry here only."""


def spec_from_config(config: ConfigFile, eos_token_ids: tuple[int, ...] | None = None) -> ModelSpec:
    """The spec that a `config.json` describes.

    `eos_token_ids`: the ids in `generation_config.json`, which replace the configuration's own.
    Raises ModelError for an unknown family and for any feature that this decoder does not have.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise config.error(
            "model_type",
            f"one of {', '.join(sorted(FAMILIES))}",
            "run it with transformers, or describe the family in "
            "minserve/models/loading/families.py if its layers are the same",
        )
    config = config.with_defaults(family.defaults)
    _refuse_what_is_missing(config)
    hidden = config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers", at_most=_MOST_LAYERS)
    mixer = _attention(config, family, hidden)
    bias = family.feed_forward_bias
    feed_forward = FeedForwardSpec(
        config.integer("intermediate_size"), config.flag("mlp_bias") if bias is None else bias
    )
    layers = tuple(
        LayerSpec(_with_window(mixer, window), feed_forward)
        for window in family.windows(config, num_layers)
    )
    rope, max_position, notes = read_rope(config)
    if rope.kind == "dynamic" and mixer.head_dim == 2:
        raise config.error(
            "head_dim", "at least 4", "rope_type 'dynamic' has no base for one pair", shown="2"
        )
    vocab_size = config.integer("vocab_size")
    own_ends = config.tokens("eos_token_id")
    ends = eos_token_ids or own_ends
    bos = config.tokens("bos_token_id")
    return ModelSpec(
        family=config.text("model_type"),
        vocab_size=vocab_size,
        hidden_size=hidden,
        layers=layers,
        norm_eps=config.number("rms_norm_eps", 1e-6, above=_SMALLEST_EPS, at_most=1.0),
        rope=rope,
        max_position=max_position,
        tie_embeddings=config.flag("tie_word_embeddings"),
        dtype=config.dtype() or "float32",
        bos_token_id=next((token for token in bos if token < vocab_size), None),
        eos_token_ids=tuple(token for token in ends if token < vocab_size),
        notes=notes + _out_of_vocabulary(ends, vocab_size),
    )


def _out_of_vocabulary(ends: tuple[int, ...], vocab_size: int) -> tuple[str, ...]:
    """Notes about end tokens outside the vocabulary, which are dropped: some files name tokens that
    were never added to the model, so it cannot generate them."""
    outside = [token for token in ends if token >= vocab_size]
    if not outside:
        return ()
    named = shorten(", ".join(map(str, outside)))
    return (f"eos_token_id {named}: ignored, the model's tokens are below {vocab_size}",)


def _attention(config: ConfigFile, family: Family, hidden: int) -> AttentionSpec:
    heads = config.integer("num_attention_heads", at_most=_MOST_HEADS)
    kv_heads = config.optional_integer("num_key_value_heads") or heads
    if heads % kv_heads:
        raise config.error(
            "num_key_value_heads",
            f"a divisor of num_attention_heads={heads}",
            "correct the file: grouped heads share KV heads evenly",
        )
    head_dim = config.optional_integer("head_dim")
    if head_dim is None:
        if hidden % heads:
            raise config.error(
                "hidden_size", f"a multiple of num_attention_heads={heads}", "give head_dim"
            )
        head_dim = hidden // heads
    if head_dim % 2 or head_dim > _LARGEST_HEAD:
        raise config.error(
            "head_dim",
            f"an even number of at most {_LARGEST_HEAD:,}",
            "rotary embedding turns pairs",
            shown=str(head_dim),
        )
    attention_bias = config.flag("attention_bias")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias if family.output_bias is None else family.output_bias,
        qk_norm=family.qk_norm,
    )


def _with_window(mixer: AttentionSpec, window: int | None) -> AttentionSpec:
    return AttentionSpec(
        mixer.num_heads,
        mixer.num_kv_heads,
        mixer.head_dim,
        window,
        mixer.qkv_bias,
        mixer.output_bias,
        mixer.qk_norm,
    )


def _refuse_what_is_missing(config: ConfigFile) -> None:
    if "is_causal" in config.values and config.get("is_causal") is not True:
        raise config.error(
            "is_causal",
            "true: tokens attend to those before them only",
            "a model that reads in both directions embeds text and cannot generate it",
        )
    if config.get("per_layer_config") is not None:
        raise config.error(
            "per_layer_config", "none: all layers have one shape", "run it with transformers"
        )
    act = config.get("hidden_act")
    if act not in (None, "silu", "swish"):
        raise config.error("hidden_act", "'silu'", "only gated SiLU feed-forwards are built")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise config.error(
            "quantization_config",
            "none: only unquantized checkpoints are read",
            "load the original, unquantized checkpoint of this model",
            shown=repr(quantization if method is None else method),
        )
