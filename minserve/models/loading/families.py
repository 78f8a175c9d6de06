"""From a Hugging Face `config.json` to a `ModelSpec`: one entry per family, one reader for all.

A family describes what its modelling code in transformers fixes (which projections have a bias,
whether heads are normalised, which layers have a window or rotary embedding) and the defaults of
its configuration class for missing keys; a block reads its own keys (`AttentionSpec.read`). A
feature that this decoder does not have is refused by name; no key that would change a logit is
ignored. Knows nothing about weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minserve.files.json_file import shorten
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.models.config_file import SMALLEST_FACTOR, ConfigFile
from minserve.models.loading.rope_config import read_rope
from minserve.spec import LayerSpec, ModelSpec

_MOST_LAYERS = 10_000
_FACTOR = {"at_least": SMALLEST_FACTOR, "at_most": 1e6}
"""Range of multipliers and soft caps."""
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
    return _windows_of(config, kinds, window, "use_sliding_window")


def _every_second_window(config: ConfigFile, num_layers: int) -> list[int | None]:
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [
            "full_attention" if index % 2 else "sliding_attention" for index in range(num_layers)
        ]
    return _windows_of(config, kinds, config.optional_integer("sliding_window"))


def _windows_without_rope(config: ConfigFile, num_layers: int) -> list[int | None]:
    window = config.optional_integer("sliding_window")
    kinds = config.get("layer_types")
    if kinds is not None:
        # As transformers: the list decides alone, whatever use_sliding_window says.
        return _windows_of(config, kinds, window)
    slides = window is not None and config.flag("use_sliding_window")
    rotated = _some_rotated(config, num_layers)
    return [window if slides and not each else None for each in rotated]


def _windows_of(
    config: ConfigFile, kinds: Any, window: int | None, switch: str | None = None
) -> list[int | None]:
    """The window of each layer that a list of kinds gives one. `switch`: the key without which
    there is none."""
    known = ("full_attention", "sliding_attention")
    num_layers = config.integer("num_hidden_layers")
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or any(kind not in known for kind in kinds)
    ):
        raise config.error(
            "layer_types", f"{num_layers} names out of {', '.join(known)}", "correct the list"
        )
    if "sliding_attention" in kinds and window is None:
        off = "" if switch is None else f"{switch} is off or "
        keys = "sliding_window" if switch is None else f"{switch} and sliding_window"
        raise config.error(
            "layer_types",
            f"no 'sliding_attention' while {off}sliding_window is null",
            f"set {keys}, or name those layers 'full_attention'",
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _all_rotated(config: ConfigFile, num_layers: int) -> list[bool]:
    return [True] * num_layers


def _some_rotated(config: ConfigFile, num_layers: int) -> list[bool]:
    given = config.get("no_rope_layers")
    if given is None:
        interval = config.integer("no_rope_layer_interval")
        return [(index + 1) % interval != 0 for index in range(num_layers)]
    if (
        not isinstance(given, list)
        or len(given) < num_layers
        or any(x not in (0, 1) for x in given)
    ):
        raise config.error(
            "no_rope_layers",
            f"{num_layers} numbers, 1 for a layer with rotary embedding and 0 for one without",
            "correct the list",
        )
    return [bool(each) for each in given[:num_layers]]


@dataclass(frozen=True)
class Family:
    """The assumptions of transformers' code for one `model_type`."""

    windows: Windows = _no_windows
    rotated: Callable[[ConfigFile, int], list[bool]] = _all_rotated
    """Which layers have rotary embedding."""
    attention: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `AttentionSpec` that its code decides, whatever the file says."""
    feed_forward: Mapping[str, Any] = field(default_factory=dict)
    """The same of `FeedForwardSpec`."""
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    scales_embedding: bool = False
    """By the square root of the width, rounded to the model's number format."""
    reads: frozenset[str] = frozenset()
    """Keys out of `OPTIONAL` that its code reads; it ignores the others."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The configuration class's values for keys missing in the file."""


_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_LLAMA_DEFAULTS = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_NO_BIAS = {"bias": False}

FAMILIES: dict[str, Family] = {
    "llama": Family(defaults=_LLAMA_DEFAULTS),
    "mistral": Family(
        _same_window,
        attention={"qkv_bias": False, "output_bias": False},
        feed_forward=_NO_BIAS,
        defaults=_LLAMA_DEFAULTS
        | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "qwen2": Family(
        _qwen_windows,
        attention={"qkv_bias": True, "output_bias": False},
        feed_forward=_NO_BIAS,
        defaults=_QWEN_DEFAULTS,
    ),
    "qwen3": Family(
        _qwen_windows,
        attention={"qk_norm": True},
        feed_forward=_NO_BIAS,
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
    ),
    "granite": Family(
        reads=frozenset(
            (
                "attention_multiplier",
                "embedding_multiplier",
                "residual_multiplier",
                "logits_scaling",
            )
        ),
        defaults=_LLAMA_DEFAULTS | {"attention_multiplier": 1.0},
    ),
    "gemma": Family(
        feed_forward=_NO_BIAS | {"activation": "gelu_tanh"},
        norm_offset=1.0,
        scales_embedding=True,
        defaults=_GEMMA_DEFAULTS | {"num_key_value_heads": 16},
    ),
    "gemma2": Family(
        _every_second_window,
        feed_forward=_NO_BIAS,
        sandwich_norms=True,
        norm_offset=1.0,
        scales_embedding=True,
        reads=frozenset(
            (
                "query_pre_attn_scalar",
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "hidden_activation",
            )
        ),
        defaults=_GEMMA_DEFAULTS
        | {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "smollm3": Family(
        _windows_without_rope,
        rotated=_some_rotated,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2_000_000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
    ),
}
"""By Hugging Face's `model_type`. To add a family with the same kinds of layers, add an
entry here only."""
OPTIONAL = frozenset().union(*(family.reads for family in FAMILIES.values()))
"""Keys that change a model's logits in some families and are ignored by the code of others."""


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
    config = config.without(OPTIONAL - family.reads).with_defaults(family.defaults)
    _refuse_what_is_missing(config)
    num_layers = config.integer("num_hidden_layers", at_most=_MOST_LAYERS)
    rope, max_position, notes = read_rope(config)
    mixer = replace(AttentionSpec.read(config, family.attention), rope=rope)
    feed_forward = FeedForwardSpec.read(config, family.feed_forward)
    layers = tuple(
        LayerSpec(
            replace(mixer, window=window, rope=rope if rotated else None),
            feed_forward,
            sandwich_norms=family.sandwich_norms,
            residual_multiplier=config.number("residual_multiplier", 1.0, **_FACTOR),
        )
        for window, rotated in zip(
            family.windows(config, num_layers), family.rotated(config, num_layers), strict=True
        )
    )
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
        hidden_size=config.integer("hidden_size"),
        layers=layers,
        norm_eps=config.number("rms_norm_eps", 1e-6, above=_SMALLEST_EPS, at_most=1.0),
        max_position=max_position,
        tie_embeddings=config.flag("tie_word_embeddings"),
        dtype=config.dtype() or "float32",
        bos_token_id=next((token for token in bos if token < vocab_size), None),
        norm_offset=family.norm_offset,
        embedding_multiplier=_embedding_multiplier(config, family),
        rounds_embedding_multiplier=family.scales_embedding,
        logit_multiplier=1.0 / config.number("logits_scaling", 1.0, **_FACTOR),
        logit_softcap=config.optional_number("final_logit_softcapping", **_FACTOR),
        eos_token_ids=tuple(token for token in ends if token < vocab_size),
        notes=notes + _out_of_vocabulary(ends, vocab_size),
    )


def _embedding_multiplier(config: ConfigFile, family: Family) -> float:
    if family.scales_embedding:
        return math.sqrt(config.integer("hidden_size"))
    return config.number("embedding_multiplier", 1.0, **_FACTOR)


def _out_of_vocabulary(ends: tuple[int, ...], vocab_size: int) -> tuple[str, ...]:
    """Notes about end tokens outside the vocabulary, which are dropped: some files name tokens that
    were never added to the model, so it cannot generate them."""
    outside = [token for token in ends if token >= vocab_size]
    if not outside:
        return ()
    named = shorten(", ".join(map(str, outside)))
    return (f"eos_token_id {named}: ignored, the model's tokens are below {vocab_size}",)


def _refuse_what_is_missing(config: ConfigFile) -> None:
    reason = "a model that reads in both directions embeds text and cannot generate it"
    if "is_causal" in config.values and config.get("is_causal") is not True:
        raise config.error("is_causal", "true: tokens attend to those before them only", reason)
    if config.flag("use_bidirectional_attention"):
        raise config.error("use_bidirectional_attention", "false or null", reason)
    if config.get("per_layer_config") is not None:
        raise config.error(
            "per_layer_config", "none: all layers have one shape", "run it with transformers"
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise config.error(
            "quantization_config",
            "none: only unquantized checkpoints are read",
            "load the original, unquantized checkpoint of this model",
            shown=repr(quantization if method is None else method),
        )
