"""What a configuration field is: a value with documentation, a unit, a trade-off and bounds.

Checks single values; knows nothing about which fields exist or how they can be combined.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, get_args, get_type_hints

from minserve.inputs.checks import (
    MOST,
    Check,
    Refused,
    checked,
    flag,
    integer,
    number,
    one_of,
    optional,
    text,
)


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the fields and what to do instead."""


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
    """Converts every field of a section to its plain type when the section is made, or refuses
    it."""

    def __post_init__(self) -> None:
        section: Any = type(self)
        for name, check in _checks(section).items():
            where = f"{section.__name__}.{name}"
            # Sections are frozen, so this is the only place that sets their values.
            object.__setattr__(self, name, checked(where, getattr(self, name), check, ConfigError))


@cache
def _checks(section: Any) -> dict[str, Check]:
    """A check for every knob of a section, from its type and its metadata."""
    hints = get_type_hints(section)
    return {
        item.name: _check_of(hints[item.name], item.metadata)
        for item in fields(section)
        if item.metadata
    }


def _check_of(hint: Any, meta: Mapping[str, Any]) -> Check:
    options = [option for option in get_args(hint) if option is not type(None)]
    kind = options[0] if options else hint
    note = "or None" if options else ""
    low, high = meta["at_least"], meta["at_most"]
    if kind is bool:
        check: Check = flag
    elif kind is int:
        check = integer(-MOST - 1 if low is None else low, MOST if high is None else high, note)
    elif kind is float:
        check = number(
            -math.inf if low is None else low, math.inf if high is None else high, note=note
        )
    elif meta["choices"]:
        check = one_of(*meta["choices"])
    else:
        check = _path_or_name
    return optional(check) if options else check


def _path_or_name(value: Any) -> str:
    """A string, a path, or another object that is written as one (`torch.device`)."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif type(value).__module__ == "torch" and type(value).__name__ == "device":
        value = str(value)
    if isinstance(value, str) and "\0" in value:
        raise Refused("a string without the character NUL")
    plain: str = text(empty=False)(value)
    return plain


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
