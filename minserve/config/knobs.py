"""What a configuration field is: a value with a document, a unit, a trade-off and bounds.

Checks single values; knows nothing about which fields there are or how they fit together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the fields and the way out."""


def knob(
    default: Any,
    doc: str,
    *,
    trade_off: str,
    unit: str = "",
    survey: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A documented configuration field: `survey` is the section of Miao et al. (2312.15234)."""
    return field(
        default=default,
        metadata={
            "doc": doc,
            "trade_off": trade_off,
            "unit": unit,
            "survey": survey,
            "choices": choices,
            "at_least": at_least,
            "at_most": at_most,
        },
    )


class Section:
    """Checks every knob of a section against its own metadata when it is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value, meta = getattr(self, item.name), item.metadata
            if not meta or value is None:
                continue
            name = f"{type(self).__name__}.{item.name}={value!r}"
            if meta["choices"] and value not in meta["choices"]:
                raise ConfigError(f"{name}: expected one of {', '.join(meta['choices'])}")
            low, high = meta["at_least"], meta["at_most"]
            if low is not None or high is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ConfigError(f"{name}: expected a number")
                if (low is not None and value < low) or (high is not None and value > high):
                    bounds = [f"at least {low}"] * (low is not None)
                    bounds += [f"at most {high}"] * (high is not None)
                    raise ConfigError(f"{name}: expected {' and '.join(bounds)}")
            if isinstance(item.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{name}: expected True or False")


@dataclass(frozen=True)
class Knob:
    """One field as the command line and the panels see it."""

    path: str
    type: type
    optional: bool
    default: Any
    doc: str
    trade_off: str
    unit: str
    survey: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The command-line option: "--block-size"."""
        return "--" + self.path.rsplit(".", 1)[-1].replace("_", "-")
