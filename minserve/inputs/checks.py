"""Small typed checks of values that come from outside: which types and ranges are accepted.

A check takes a value and returns it in its plain Python type, or raises `Refused` with what it
expected. `checked` turns that into one sentence with the name of the field. Sampling parameters,
prompts and configuration use these checks. Knows nothing about which fields exist.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from minserve.inputs.wording import with_article

Check = Callable[[Any], Any]

MOST = 2**63 - 1
"""Integers are 64-bit: larger ones cannot be stored in a tensor."""
MOST_ITEMS = 1_000_000
"""Longest list in a request's parameters: `range(10**12)` must not be read to its end."""
MOST_NAME_CHARS = 1024
"""Longest request id or salt, in characters."""


class TooLong(ValueError):
    """There are more items than may be read. The message continues a sentence that
    begins with a name."""


class Refused(ValueError):
    """The message says what was expected. `where` and `value` say which item of a list or
    mapping was refused."""

    def __init__(self, expected: str, where: str = "", value: Any = None) -> None:
        super().__init__(expected)
        self.where = where
        self.value = value


def checked(name: str, value: Any, check: Check, error: type[ValueError]) -> Any:
    """`check(value)`, or `error` with the sentence "name=value: expected ..."."""
    try:
        return check(value)
    except Refused as refused:
        shown = shorten(refused.value if refused.where else value)
        sentence = f"{name}{refused.where}={shown}: expected {refused}"
    except Exception as broken:  # the value's own methods may raise anything
        sentence = f"{name}={shorten(value)}: reading it raised {type(broken).__name__}"
    raise error(sentence)


def read(value: Any, most: int) -> list[Any]:
    """A list of the items of anything with a length and an iterator. A one-dimensional array gives
    Python numbers, other arrays their rows. Raises TooLong for more than `most` items, or for more
    than the value's own length: a caller's class may have an iterator without end."""
    try:
        length = len(value)
    except OverflowError:  # len() fails for range(10**30)
        raise TooLong(f"has far too many items, and may have {most}") from None
    if length > most:
        raise TooLong(f"has {length} items, and may have {most}")
    if getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    return _up_to(value, length)


def read_mapping(value: Mapping[Any, Any], most: int) -> list[tuple[Any, Any]]:
    """A copy of a mapping's pairs, with the limits of `read`."""
    length = len(value)
    if length > most:
        raise TooLong(f"has {length} entries, and may have {most}")
    return _up_to(value.items(), length)


def _up_to(values: Iterable[Any], length: int) -> list[Any]:
    found = list(itertools.islice(values, length + 1))
    if len(found) > length:
        raise TooLong(f"has more items than the {length} of its length")
    return found


def shorten(value: Any, limit: int = 60) -> str:
    """The value for an error message: one line of at most `limit` characters. Never raises."""
    try:
        text = _shown(value, limit)
    except Exception:
        # `__class__` may be fake.
        text = with_article(type.__dict__["__name__"].__get__(type(value)))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shown(value: Any, limit: int) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if hasattr(value, "dtype") and _is_shaped(value):
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    if isinstance(value, str):
        value = str.__str__(value)
        return repr(value) if len(value) <= limit else repr(value[: limit - 1])[:-1] + "…'"
    return " ".join(_REPR.repr(value).split())


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 48


def optional(check: Check) -> Check:
    """None, or what `check` accepts."""
    return lambda value: None if value is None else check(value)


def flag(value: Any) -> bool:
    """True or False, Python's or numpy's. 0 and 1 are integers, and are refused."""
    if isinstance(value, bool):
        return value
    is_numpy = type(value).__module__ == "numpy" and not _is_shaped(value)
    if is_numpy and _is_kind(value, "bool"):
        return bool(value)
    raise Refused("True or False")


def integer(low: int = -MOST - 1, high: int = MOST, note: str = "") -> Check:
    """An integer from `low` to `high`: Python's, or a scalar of numpy or torch. Refuses booleans
    and floats, even 2.0. `note` is appended to the expectation in the error."""
    expected = f"an integer of at least {low}"
    if high < 2**31:
        expected = f"an integer from {low} to {high}"
    elif low == -MOST - 1:
        expected = "a 64-bit integer"
    beyond = f", and at most {high}" * expected.startswith("an integer of at least")
    expected += note and f" ({note})"

    def check(value: Any) -> int:
        if type(value) is not int:
            value = _index(value, expected)
        if not low <= value <= high:
            raise Refused(expected if value < low else expected + beyond)
        return int(value)

    return check


def _index(value: Any, expected: str) -> int:
    """The exact int of anything that Python counts as an integer."""
    whole = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    if whole and abs(value) <= MOST and value == int(value):
        raise Refused(f"{expected}: this is a whole number of another type, write {int(value)}")
    if isinstance(value, bool) or _is_shaped(value) or _is_kind(value, "bool"):
        raise Refused(expected)
    try:
        return int.__add__(operator.index(value), 0)
    except Exception:
        raise Refused(expected) from None


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    also: float | None = None,
    note: str = "",
) -> Check:
    """A finite number from `low` (or, with `above`, greater than it) to `high`, or `also`, as a
    float. Accepts what Python's `float()` accepts, except text, booleans and complex numbers."""
    bounds = [f"above {low:g}" if above else f"at least {low:g}"] * math.isfinite(low)
    bounds += [f"at most {high:g}"] * math.isfinite(high)
    expected = f"a finite number{(bounds and ', ') or ''}{' and '.join(bounds)}"
    expected += note and f" ({note})"

    def check(value: Any) -> float:
        result = _float(value, expected)
        if also is not None and result == also:
            return result
        if not math.isfinite(result) or not low <= result <= high or (above and result == low):
            raise Refused(expected)
        return result + 0.0  # -0.0 becomes 0.0

    return check


def _float(value: Any, expected: str) -> float:
    if type(value) is float:
        return value
    kind = type(value)
    if (
        isinstance(value, bool)
        or not (hasattr(kind, "__float__") or hasattr(kind, "__index__"))
        or _is_shaped(value)
        or _is_kind(value, "bool", "complex")
    ):
        raise Refused(expected)
    try:
        return float(value)
    except Exception:  # a tensor without data, 10**400
        raise Refused(expected) from None


def _is_shaped(value: Any) -> bool:
    """True for an array with dimensions, even with a single element."""
    return bool(getattr(value, "ndim", 0))


def _is_kind(value: Any, *kinds: str) -> bool:
    """True for a scalar or array of numpy or torch whose numbers are of one of these kinds."""
    dtype = str(getattr(value, "dtype", ""))
    return any(kind in dtype for kind in kinds)


def text(
    *, empty: bool = True, blank: bool = True, most: int = MOST_ITEMS, what: str = "a string"
) -> Check:
    """A string that can be encoded (no lone surrogates), of at most `most` characters. `empty` and
    `blank` say whether it may be empty, or consist only of spaces."""
    kind = what if empty and blank else f"{what} that is not {'empty' if blank else 'blank'}"

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused(kind)
        plain = str.__str__(value)
        if (not empty and not plain) or (not blank and not plain.strip()):
            raise Refused(kind)
        if len(plain) > most:
            raise Refused(f"{what} of at most {most} characters, not {len(plain)}")
        if not is_unicode(plain):
            raise Refused(f"{what} without lone surrogates, which stand for no character")
        return plain

    return check


def is_unicode(value: str) -> bool:
    """False for a string with lone surrogates: tokenizers, hashes and files cannot encode it."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_of(*choices: str) -> Check:
    """One of these strings."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Refused(f"one of {', '.join(choices)}")
        return str.__str__(value)

    return check


def items(check: Check, what: str) -> Check:
    """A list, tuple, set, range or array in which `check` accepts every item, as a tuple;
    the items of a set are sorted. Generators are refused: they could be endless, and can
    be read only once."""

    def each(value: Any) -> tuple[Any, ...]:
        text_like = isinstance(value, (str, bytes, bytearray, memoryview, Mapping))
        if text_like or not (isinstance(value, Collection) or _is_shaped(value)):
            raise Refused(what)
        try:
            given = read(value, MOST_ITEMS)
        except TooLong as error:
            raise Refused(f"{what}, at most {MOST_ITEMS} of them; this {error}") from None
        result = []
        for index, item in enumerate(given):
            try:
                result.append(check(item))
            except Refused as refused:
                raise Refused(str(refused), f"[{index}]", item) from None
        return tuple(sorted(result) if isinstance(value, (set, frozenset)) else result)

    return each
