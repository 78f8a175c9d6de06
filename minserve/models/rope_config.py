"""Rotary parameters of a `config.json`, as transformers 5 writes them and as older versions did.

transformers 5 has one `rope_parameters`; before, `rope_theta` stood beside a `rope_scaling` whose
kind was called `type` or `rope_type`.
"""

from __future__ import annotations

from typing import Any, cast, get_args

from minserve.models.config_file import ConfigFile
from minserve.spec import RopeKind, RopeSpec

_KINDS: tuple[str, ...] = get_args(RopeKind)
_NEEDS_FACTOR = ("linear", "dynamic", "llama3")


def read_rope(config: ConfigFile) -> tuple[RopeSpec, int]:
    """The rotary spec, and the longest position it is claimed to reach, in tokens.

    The claim is `max_position_embeddings`, which some scalings leave at the length before scaling:
    "linear" and "dynamic" multiply it by their factor, "yarn" its original length, as vLLM does.
    Raises ModelError for a scaling this engine does not have.
    """
    values = _merged(config)
    rope = ConfigFile(config.path, values)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in _KINDS:
        raise rope.error(
            "rope_type",
            f"one of {', '.join(_KINDS)}",
            "run this model with transformers",
            shown=repr(kind),
        )
    _refuse_partial(config, rope)
    longest = config.integer("max_position_embeddings")
    spec = _spec(rope, cast(RopeKind, kind), longest)
    original = spec.original_max_position or longest
    stretched = int(spec.factor * original)
    if kind in ("linear", "dynamic"):
        longest = stretched
    elif kind == "yarn":
        longest = max(longest, stretched)
    return spec, longest


def _merged(config: ConfigFile) -> dict[str, Any]:
    """One dict of rotary parameters, whichever way the file spells them."""
    values: dict[str, Any] = {"rope_theta": config.get("rope_theta") or 10_000.0}
    for key in ("rope_scaling", "rope_parameters"):
        part = config.get(key)
        if part is None:
            continue
        if not isinstance(part, dict) or any(isinstance(item, dict) for item in part.values()):
            raise config.error(
                key,
                "one set of parameters for all layers",
                "per-layer rotary parameters are not supported: run this model with transformers",
            )
        values.update({name: item for name, item in part.items() if item is not None})
    return values


def _refuse_partial(config: ConfigFile, rope: ConfigFile) -> None:
    for source in (config, rope):
        if source.number("partial_rotary_factor", 1.0) != 1.0:
            raise source.error(
                "partial_rotary_factor",
                "1.0: heads are rotated whole",
                "run this model with transformers",
            )


def _spec(rope: ConfigFile, kind: RopeKind, max_position: int) -> RopeSpec:
    theta = rope.number("rope_theta")
    if kind == "default":
        return RopeSpec(theta)
    # transformers scales "dynamic" from max_position_embeddings, whatever else the file says.
    original = max_position
    if kind in ("llama3", "yarn"):
        original = rope.optional_integer("original_max_position_embeddings") or max_position
    if kind in _NEEDS_FACTOR:
        factor = rope.number("factor")
    else:
        factor = rope.number("factor", max_position / original)
    return RopeSpec(
        theta=theta,
        kind=kind,
        factor=factor,
        original_max_position=None if kind == "linear" else original,
        low_freq_factor=rope.number("low_freq_factor", None if kind == "llama3" else 1.0),
        high_freq_factor=rope.number("high_freq_factor", None if kind == "llama3" else 4.0),
        attention_factor=_optional(rope, "attention_factor"),
        beta_fast=_optional(rope, "beta_fast") or 32.0,
        beta_slow=_optional(rope, "beta_slow") or 1.0,
        mscale=_optional(rope, "mscale"),
        mscale_all_dim=_optional(rope, "mscale_all_dim"),
        truncate=True if rope.get("truncate") is None else rope.flag("truncate"),
    )


def _optional(rope: ConfigFile, key: str) -> float | None:
    return None if rope.get(key) is None else rope.number(key)
