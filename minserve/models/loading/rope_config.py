"""Rotary parameters of a `config.json`, as transformers 5 writes them and as older versions did.

transformers 5 has one `rope_parameters`; older versions had `rope_theta` and a `rope_scaling` whose
kind was called `type` or `rope_type`. If a file has both, we follow transformers and add a note.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast, get_args

from minserve.models.config_file import LARGEST_SIZE, ConfigFile
from minserve.models.errors import ModelError
from minserve.spec import ModelSpec, RopeKind, RopeSpec

_KINDS: tuple[str, ...] = get_args(RopeKind)
_NEEDS_FACTOR = ("linear", "dynamic", "llama3")
_MAX_TABLE_BYTES = 1 << 29
"""Enough for a million positions of 128-wide heads."""
_LARGEST_THETA = 1e15
_LARGEST = 1e6
"""Limit of the small factors: a thousand times any that a model uses, and far from overflow."""


def read_rope(config: ConfigFile) -> tuple[RopeSpec, int, tuple[str, ...]]:
    """The rotary spec, the longest position in tokens that the file declares, and notes.

    The longest position is `max_position_embeddings`. Some scalings leave that at the length before
    scaling: "linear" and "dynamic" multiply it by their factor, and "yarn" multiplies its original
    length, as in vLLM. Raises ModelError for a scaling that this engine does not have.
    """
    values, notes = _merged(config)
    rope = replace(config, values=values)
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
    # A factor below 1 scales positions, but does not reduce their number.
    stretched = int(max(spec.factor, 1.0) * original)
    if kind in ("linear", "dynamic"):
        longest = stretched
    elif kind == "yarn":
        longest = max(longest, stretched)
    if longest > LARGEST_SIZE:
        raise rope.error(
            "factor",
            f"a scaling to at most {LARGEST_SIZE:,} positions, not {longest:,}",
            "lower it, or max_position_embeddings",
        )
    if kind == "dynamic":
        notes.append(
            f"rope_type 'dynamic': differs from transformers by design beyond {original} tokens. "
            "There its result depends on how a text was cut into steps; here all positions share "
            f"one base, unscaled when max_model_len is at most {original}"
        )
    return spec, longest, tuple(notes)


def check_rotary_table(spec: ModelSpec, max_position: int) -> None:
    """Raise ModelError if the table of cosines and sines for this many positions is too large.

    A file may declare any length, and the engine uses it if its user gives none.
    """
    widest = max((layer.mixer.heads.head_dim for layer in spec.layers), default=0)
    table_bytes = max_position * widest * 4
    if table_bytes > _MAX_TABLE_BYTES:
        raise ModelError(
            f"max_position_embeddings and the rope scaling in config.json claim {max_position:,} "
            f"positions, whose rotary table would take {table_bytes:,} bytes: expected at most "
            f"{_MAX_TABLE_BYTES:,}; set scheduling.max_model_len to the longest text you will run."
        )


def _merged(config: ConfigFile) -> tuple[dict[str, Any], list[str]]:
    """One dict of rotary parameters, for both spellings of the file, and notes on conflicts."""
    parts = {key: _part(config, key) for key in ("rope_scaling", "rope_parameters")}
    # In transformers the old key, if it has a value, replaces the new one as a whole.
    part = parts["rope_scaling"] or parts["rope_parameters"]
    theta = config.get("rope_theta")
    values = {"rope_theta": 10_000.0 if theta is None else theta, **part}
    # In the scalings that read it, the value outside takes precedence over the one inside.
    outside = config.get("original_max_position_embeddings")
    if outside is not None:
        values["original_max_position_embeddings"] = outside
    notes = []
    if parts["rope_scaling"] and parts["rope_parameters"]:
        notes.append(
            "config.json has rope_scaling beside rope_parameters: rope_scaling is followed alone, "
            f"as in transformers, with rope_theta={values['rope_theta']}"
        )
    return values, notes


def _part(config: ConfigFile, key: str) -> dict[str, Any]:
    part = config.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict) or any(isinstance(item, dict) for item in part.values()):
        raise config.error(
            key,
            "one set of parameters for all layers",
            "per-layer rotary parameters are not supported: run this model with transformers",
        )
    return {name: item for name, item in part.items() if item is not None}


def _refuse_partial(config: ConfigFile, rope: ConfigFile) -> None:
    for source in (config, rope):
        if source.number("partial_rotary_factor", 1.0) != 1.0:
            raise source.error(
                "partial_rotary_factor",
                "1.0: heads are rotated whole",
                "run this model with transformers",
            )


def _spec(rope: ConfigFile, kind: RopeKind, max_position: int) -> RopeSpec:
    theta = rope.number("rope_theta", above=1.0, at_most=_LARGEST_THETA)
    if kind == "default":
        return RopeSpec(theta)
    # transformers scales "dynamic" from max_position_embeddings, whatever else the file says.
    original = max_position
    if kind in ("llama3", "yarn"):
        original = rope.optional_integer("original_max_position_embeddings") or max_position
    default = None if kind in _NEEDS_FACTOR else max_position / original
    factor = rope.number("factor", default, above=0.0, at_most=LARGEST_SIZE)
    low = high = 1.0
    if kind == "llama3":
        low = rope.number("low_freq_factor", above=0.0, at_most=_LARGEST)
        high = rope.number("high_freq_factor", above=low, at_most=_LARGEST)
    return RopeSpec(
        theta=theta,
        kind=kind,
        factor=factor,
        original_max_position=None if kind == "linear" else original,
        low_freq_factor=low if kind == "llama3" else 1.0,
        high_freq_factor=high if kind == "llama3" else 4.0,
        **(_yarn_values(rope) if kind == "yarn" else {}),
    )


def _yarn_values(rope: ConfigFile) -> dict[str, Any]:
    """The values that only YaRN reads. transformers treats 0 as absent, except for
    `attention_factor`."""
    values: dict[str, Any] = {
        "truncate": True if rope.get("truncate") is None else rope.flag("truncate")
    }
    for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        if rope.number(key, 0.0, at_least=0.0, at_most=_LARGEST):
            values[key] = rope.number(key, above=1e-6)
    if rope.get("attention_factor") is not None:
        values["attention_factor"] = rope.number("attention_factor", above=0.0, at_most=_LARGEST)
    return values
