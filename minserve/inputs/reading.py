"""Reads a caller's lists and arrays, whose methods may raise anything or never end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minserve.inputs.checks import TooLong, read, shorten
from minserve.inputs.params import InvalidRequestError


def as_list(value: Any, name: str, expected: str, most: int, hint: str = "") -> list[Any]:
    """A copy, as a list, of a sequence or an array of at most `most` items. Raises
    InvalidRequestError; `hint` follows the sentence that says there are too many."""
    with reading(value, name):
        if isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidRequestError(
                f"{name} is {type(value).__name__}: decode it to a string first"
            )
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list and not (is_array(value) and value.ndim):
            raise InvalidRequestError(f"{name}={shorten(value)}: expected {expected}")
        try:
            return read(value, most)
        except TooLong as error:
            raise InvalidRequestError(f"{name} {error}{hint}") from None


@contextmanager
def reading(value: Any, name: str) -> Iterator[None]:
    """Turn any exception in the block, which calls methods of `value`, into InvalidRequestError."""
    try:
        yield
    except InvalidRequestError:
        raise
    except Exception as error:
        raise InvalidRequestError(
            f"{name}={shorten(value)}: reading it raised {type(error).__name__}"
        ) from None


def is_array(value: Any) -> bool:
    """True for an array of numpy or torch; imports neither."""
    return all(hasattr(value, name) for name in ("dtype", "ndim", "shape", "tolist"))


def is_integer(array: Any) -> bool:
    """True for an array of integers."""
    return "int" in str(array.dtype)
