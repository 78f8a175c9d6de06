"""The values of a GGUF file's header, in their order: integers, strings, arrays.

Never reads beyond the header's limit, and never makes a list or an array whose items could not all
be in the bytes that are left. Knows nothing about keys and tensors.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from minserve.files.json_file import FileError, shorten

_MAX_DEPTH = 4
"""Levels of nested arrays. No known key nests them."""
_NUMBERS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""By the format's number of each type."""
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 6, 7, 8, 9, 10
_LEAST_BYTES = {_BOOL: 1, _STRING: 8, _ARRAY: 12}


class GGUFError(FileError):
    """A GGUF file that cannot be used. The message is a sentence with its path."""


def refusal(path: Path, reason: str) -> GGUFError:
    """An error about a damaged file, to be raised by the caller."""
    return GGUFError(f"{path} is not a readable GGUF file: {reason}; download or copy it again.")


class Reader:
    """Reads one value after the other from `content`, up to byte `limit`."""

    def __init__(self, path: Path, content: Any, limit: int) -> None:
        self.path = path
        self.at = 0
        """The next byte."""
        self._content = content
        self._limit = limit

    def error(self, reason: str) -> GGUFError:
        """An error about this file, to be raised by the caller."""
        return refusal(self.path, reason)

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        """Raise GGUFError unless `count` items of at least so many bytes each may follow."""
        left = self._limit - self.at
        if count * least_bytes > left:
            raise self.error(
                f"{what}, which take at least {count * least_bytes:,} bytes: {left:,} are left"
            )

    def uint32(self, what: str) -> int:
        """An integer of four bytes; `what` is named if the file ends here."""
        return int(self._number(_UINT32, what))

    def uint64(self, what: str) -> int:
        """An integer of eight bytes."""
        return int(self._number(_UINT64, what))

    def string(self, what: str) -> str:
        """One string: its length in bytes, then UTF-8."""
        length = self.uint64(what)
        start = self._take(length, what)
        try:
            return str(self._content[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 (byte {start + error.start:,})") from None

    def value(self, key: str) -> Any:
        """The type and the value of a key."""
        what = f"key {shorten(repr(key))}"
        return self._typed(self.uint32(what), what, 0)

    def _typed(self, kind: int, what: str, depth: int) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, depth + 1)
        if kind == _BOOL:
            byte = self._content[self._take(1, what)]
            if byte > 1:
                raise self.error(f"{what} is the byte {byte}: expected 0 or 1, a boolean")
            return bool(byte)
        if kind not in _NUMBERS:
            raise self.error(f"{what} has a value of type {kind:,}: expected 0 to 12")
        number = self._number(kind, what)
        if isinstance(number, float) and not math.isfinite(number):
            raise self.error(f"{what} is {number}: expected a finite number")
        # The shortest decimal of a float32 is what the model's authors wrote: 1e-05 rather than
        # 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def _array(self, what: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise self.error(f"{what} nests arrays more than {_MAX_DEPTH} levels deep")
        kind, count = self.uint32(what), self.uint64(what)
        number = _NUMBERS.get(kind)
        if number is None and kind not in _LEAST_BYTES:
            raise self.error(f"{what} has items of type {kind:,}: expected 0 to 12")
        size = _LEAST_BYTES[kind] if number is None else number.size
        self.check_count(count, size, f"{what} counts {count:,} items")
        if number is not None:
            start = self._take(count * size, what)
            # A copy, so that nothing in the metadata keeps the file mapped.
            return np.frombuffer(self._content, np.dtype(number.format), count, start).copy()
        if kind == _STRING:
            return [self.string(what) for _ in range(count)]
        return [self._typed(kind, what, depth) for _ in range(count)]

    def _number(self, kind: int, what: str) -> Any:
        number = _NUMBERS[kind]
        return number.unpack_from(self._content, self._take(number.size, what))[0]

    def _take(self, count: int, what: str) -> int:
        """Where the next `count` bytes begin; moves on behind them."""
        start = self.at
        if count > self._limit - start:
            raise self.error(f"{what} needs {count:,} bytes at {start:,}, where its header ends")
        self.at += count
        return start
