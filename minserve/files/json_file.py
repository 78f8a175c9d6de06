"""The only reader of files that the engine did not write: regular files, capped, in strict JSON.

Models, tokenizers, caches and progress records may come from other programs and versions, or be cut
off by a full disk. Nothing in here waits for a pipe, reads more than it was allowed to, or returns
a value that makes Python fail later. Knows nothing about what a file is for.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

MAX_BYTES = 4 << 20
"""Default cap: a hundred times the largest configuration file we know."""
MAX_DEPTH = 64
"""Levels of nested objects and lists. Deeper ones exhaust the stack of code that walks them."""
MAX_DIGITS = 40
"""Most digits of one integer: those of 128 bits, and a sign. Python refuses to
print 4,300 digits."""

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FileError(ValueError):
    """A file that is missing, too large, or of the wrong kind. The message is a
    sentence with its path."""


def read_json(
    path: Path | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, what: str = "JSON"
) -> Any:
    """The value in a JSON file; `what` names its purpose in errors ("a progress record").

    Stricter than Python's parser where the difference could cause errors later: no NaN or infinite
    number, no integer of more than `MAX_DIGITS`, no key twice in one object, no lone surrogate, at
    most `max_depth` levels. Raises FileError, and nothing else, for any file at all.
    """
    content = read_bytes(path, max_bytes=max_bytes, what=what)
    return parse_json(content, path, max_depth=max_depth, what=what)


def parse_json(
    encoded: bytes, path: Path | str, *, max_depth: int = MAX_DEPTH, what: str = "JSON"
) -> Any:
    """As `read_json`, for bytes that were read from `path`: a part of a file in another format."""
    content = _decode(encoded, path, what)
    try:
        value = json.loads(
            content,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise _refusal(path, what, f"it is nested more than {max_depth} levels deep") from None
    except ValueError as error:  # JSONDecodeError, or one of the hooks below
        raise _refusal(path, what, str(error)) from None
    reason = _flaw(value, max_depth, bool(_ESCAPED_SURROGATE.search(content)))
    if reason is not None:
        raise _refusal(path, what, reason)
    return value


def read_text(path: Path | str, *, max_bytes: int = MAX_BYTES, what: str = "text") -> str:
    """The text of a regular file in UTF-8. Raises FileError, and nothing else."""
    return _decode(read_bytes(path, max_bytes=max_bytes, what=what), path, what)


def read_bytes(path: Path | str, *, max_bytes: int = MAX_BYTES, what: str = "data") -> bytes:
    """The bytes of a regular file (or a link to one). Raises FileError, and nothing else."""
    try:
        descriptor = open_regular(path, what=what)
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            # One byte more than allowed, to detect a file that grew while it was read.
            content = file.read(max_bytes + 1) if size <= max_bytes else b""
    except OSError as error:
        raise _refusal(path, what, _os_reason(error)) from None
    if size > max_bytes or len(content) > max_bytes:
        raise _refusal(
            path, what, f"it has {max(size, len(content)):,} bytes and {max_bytes:,} are allowed"
        )
    return content


def open_regular(path: Path | str, *, what: str = "data") -> int:
    """A descriptor of a regular file, for reading; the caller closes it. Raises FileError.

    A named pipe would wait for its writer, and opening a device may have any effect. Both are
    refused before opening, and again after it, in case the path has changed in between.
    """
    try:
        # Python raises its own errors for impossible paths: a NUL, a lone surrogate.
        _check_regular(os.stat(path).st_mode, path, what)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _refusal(path, what, _os_reason(error)) from None
    except FileError:
        raise
    except ValueError as error:
        raise _refusal(repr(str(path)), what, f"its path is impossible ({error})") from None
    try:
        _check_regular(os.fstat(descriptor).st_mode, path, what)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _decode(content: bytes, path: Path | str, what: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise _refusal(path, what, "it starts with a byte order mark: save it as UTF-8 without one")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8: save it as UTF-8"
        raise _refusal(path, what, reason) from None


def _check_regular(mode: int, path: Path | str, what: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
        raise _refusal(path, what, f"it is {kind}, and only regular files are read")


def _refusal(path: Path | str, what: str, reason: str) -> FileError:
    return FileError(f"{path} cannot be read as {what}: {reason}.")


def _os_reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no such file"
    return (error.strerror or type(error).__name__).lower()


def shorten(text: str, longest: int = 60) -> str:
    """A value for an error message: shortened, and marked as shortened."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text):,} characters)"


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds an integer of {len(digits):,} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds {shorten(digits)}, which is beyond every floating-point number")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it names {shorten(repr(twice))} twice in one object: keep one of them")
    return found


def _flaw(value: Any, max_depth: int, has_surrogates: bool) -> str | None:
    """What is wrong with a parsed value, checked without recursion; None if nothing is."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, (dict, list)) and depth == max_depth:
                return f"it is nested more than {max_depth} levels deep"
            if isinstance(each, dict):
                below.extend(each.values())
                if has_surrogates:
                    below.extend(each)
            elif isinstance(each, list):
                below.extend(each)
            elif has_surrogates and isinstance(each, str) and not _is_whole(each):
                return f"it holds {shorten(ascii(each))}, half of a UTF-16 pair"
        level, depth = below, depth + 1
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
