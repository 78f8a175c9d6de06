"""Converts plain JSON values to data classes, and checks the type of every field.

For files that the engine wrote and that may have been changed since. Knows the types that such data
classes have: numbers, strings, booleans, tuples, unions and data classes of them.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from minserve.files.json_file import shorten

T = TypeVar("T")


def build(cls: type[T], data: Any, what: str = "") -> T:
    """A `cls` from the JSON form of `dataclasses.asdict`; no field missing, none unknown.

    An int is accepted as a float; no other type for another. Raises ValueError with a sentence that
    names the field, for a wrong type and for numbers that are not finite.
    """
    value: T = _value(cls, data, what or cls.__name__)
    return value


def _value(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _record(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple(arguments, data, where)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is {shorten(repr(data))}, expected an object")
        return {
            name: _value(arguments[1], each, f"{where}[{name!r}]") for name, each in data.items()
        }
    if origin is typing.Literal:
        if not isinstance(data, str) or data not in arguments:
            raise ValueError(f"{where} is {shorten(repr(data))}, expected one of {arguments}")
        return data
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, data, where)
    # In Python True is an int, but in a file it is not a number.
    if kind is float and type(data) in (int, float):
        if not math.isfinite(number := _float(data)):
            raise ValueError(f"{where} is {shorten(str(data))}, expected a finite number")
        return number
    if type(data) is not kind:
        raise ValueError(f"{where} is {shorten(repr(data))}, expected {_NAMES[kind]}")
    return data


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {shorten(repr(data))}, expected an object")
    known = _fields(kind)
    for name in data:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {shorten(repr(name))}")
    for name, (_, optional) in known.items():
        if name not in data and not optional:
            raise ValueError(f"{where} has no field {name!r}")
    return kind(
        **{name: _value(known[name][0], value, f"{where}.{name}") for name, value in data.items()}
    )


def _tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where} is {shorten(repr(data))}, expected a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(data)
    if len(arguments) != len(data):
        raise ValueError(f"{where} has {len(data)} values, expected {len(arguments)}")
    return tuple(
        _value(kind, value, f"{where}[{index}]")
        for index, (kind, value) in enumerate(zip(arguments, data, strict=True))
    )


def _union(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _value(kind, data, where)
        except ValueError:
            continue
    return _value(kinds[-1], data, where)


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name -> (type, whether the field has a default)."""
    hints = typing.get_type_hints(kind)
    return {
        item.name: (
            hints[item.name],
            item.default is not MISSING or item.default_factory is not MISSING,
        )
        for item in fields(kind)
    }


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
}
