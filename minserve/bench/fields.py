"""Fields of `EngineConfig` as people write them: "memory.kv_bytes=64MiB", and back to text.

Knows types and units, not bounds: those are checked by the configuration itself.
"""

from __future__ import annotations

from typing import Any

from minserve.config import ConfigError, Knob, describe
from minserve.inputs.wording import with_article

_UNITS = {
    f"{prefix}{letter}": base**power
    for base, letter in ((1024, "iB"), (1000, "B"))
    for power, prefix in enumerate(("", "K", "M", "G", "T"))
    if power
} | {"": 1, "B": 1}


def find_knob(path: str) -> Knob | None:
    """The field at a dotted path; None if there is none."""
    return next((knob for knob in describe() if knob.path == path), None)


def parse_field(text: str) -> tuple[str, Any]:
    """(path, value) of "FIELD=VALUE". The value of an unknown field stays text, for
    `EngineConfig.with_values` to refuse. Raises ConfigError."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected FIELD=VALUE, such as memory.block_size=32")
    knob = find_knob(path)
    return path, value if knob is None else parse_value(knob, value)


def parse_value(knob: Knob, text: str, option: str = "--set ") -> Any:
    """The value that a text stands for; "none" and "" leave an optional field to the engine.

    Raises ConfigError for a text of another type; its message begins with `option`.
    """
    given = text.strip()
    if knob.optional and given.lower() in ("none", ""):
        return None
    where = f"{option}{knob.path}={text}"
    if knob.type is bool:
        if given.lower() not in ("true", "false"):
            raise ConfigError(f"{where}: expected true or false")
        return given.lower() == "true"
    try:
        return _bytes(given) if knob.unit == "bytes" else knob.type(given)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: expected {_expected(knob)}") from None


def _expected(knob: Knob) -> str:
    """What a text should have said, in the words of the configuration's own checks."""
    if knob.unit == "bytes":
        return "a size, such as 64MiB"
    named = {int: "an integer", float: "a number"}
    return named.get(knob.type) or with_article(knob.type.__name__)


def show_value(knob: Knob, value: Any) -> str:
    """The text that `parse_value` reads as this value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if knob.unit == "bytes":
        for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
            if value and value % 1024**power == 0:
                return f"{value // 1024**power}{unit}"
    return str(value)


def _bytes(text: str) -> int:
    digits = text.rstrip("BKMGTi")
    unit = _UNITS.get(text[len(digits) :])
    if unit is None:
        raise ValueError(text)
    return int(digits) * unit if digits.isdecimal() else int(float(digits) * unit)
