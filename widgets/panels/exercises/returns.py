"""What an exercise's function has to return, and the sentence for everything else.

Numbers of numpy and torch count as numbers. True and False do not: where a number is asked for they
are a comparison left standing by mistake.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minserve.inputs.wording import with_article
from widgets.panels.exercises.time_limit import Cut

_MOST_NUMBERS = 100_000
"""Elements of a list that a solution returns: what never ends would fill the memory first."""

_short = reprlib.Repr()
_short.maxstring, _short.maxother, _short.maxlong = 60, 80, 40
_short.maxlist = _short.maxtuple = 8
_short.maxlevel = 3


class Wrong(Exception):
    """A case's verdict on a solution, in a sentence.

    `got` is what the solution did, as far as the case can tell: two solutions with equal `got` are
    the same mistake. Left out, it is the answers that the solution gave in the case.
    """

    def __init__(self, message: str, *, got: Any = None) -> None:
        super().__init__(message)
        self.got = got


class WrongTypeError(Wrong):
    """The answer is nothing that the case could use."""


class BrokenError(Exception):
    """The solution did not come to an answer, where something else than `Asked` ran it; the message
    says why, with the line."""


@dataclass(frozen=True)
class Returns:
    """What is expected, in words, and how it is read from an answer."""

    words: str
    convert: Callable[[Any], Any]
    """The answer as the cases use it; raises TypeError or ValueError, with a hint or empty."""

    def read(self, answer: Any) -> Any:
        """The answer as the cases use it. Raises WrongTypeError, in words."""
        try:
            return self.convert(answer)
        except (TypeError, ValueError, OverflowError) as error:
            hint = str(error) if isinstance(error, Hint) else ""
        if answer is None:
            raise WrongTypeError("returned None: is a `return` missing?")
        said = f"returned {_words(answer)}, expected {self.words}"
        raise WrongTypeError(said + (f": {hint}" if hint else ""))


class Hint(TypeError):
    """Why an answer cannot be used, for the reader."""


def shortened(value: Any, most: int = 160) -> str:
    """A value as text that fits a line or two."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except Cut:
        raise
    except BaseException as error:  # The reader's own class may fail here.
        return f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return text if len(text) <= most else _short.repr(value)[: 2 * most]


def text_of(error: BaseException) -> str:
    """What an exception says; the reader's own class may fail to say it."""
    try:
        return str(error)
    except Cut:
        raise
    except BaseException as failed:
        return f"<without a text: {type(failed).__name__}>"


def _words(answer: Any) -> str:
    kind = type(answer)
    known = {int: "the whole number", float: "the float", str: "the text", tuple: "a tuple,",
             list: "a list,", dict: "a dict,", set: "a set,"}  # fmt: skip
    if callable(answer):
        return f"the function `{getattr(answer, '__name__', kind.__name__)}` itself"
    if _is_truth(answer):
        return repr(bool(answer))
    shown = shortened(answer)
    if shown.startswith("a whole number"):
        return shown
    return f"{known.get(kind, f'{with_article(kind.__name__)},')} {shown}"


def _is_truth(answer: Any) -> bool:
    """True and False, of Python or numpy."""
    return type(answer).__name__ in ("bool", "bool_")


def _index(answer: Any) -> int:
    if _is_truth(answer):
        raise Hint("is it the result of a comparison?")
    if isinstance(answer, float) and answer == math.floor(answer):
        raise Hint("`//` divides whole numbers, `int(...)` converts")
    if callable(answer):
        raise Hint("call it, with parentheses")
    if isinstance(answer, tuple):
        raise Hint("is there a comma too many?" if len(answer) == 1 else "return one value alone")
    number = operator.index(answer)
    if number.bit_length() > 63:
        raise Hint("it is too large to count anything here")
    return number


def _real(answer: Any) -> float:
    if isinstance(answer, str):
        raise Hint("a number has no quotes")
    if callable(answer) or isinstance(answer, tuple) or _is_truth(answer):
        _index(answer)
    if not hasattr(answer, "__float__"):
        raise TypeError
    try:
        number = float(answer)
    except OverflowError:
        raise Hint("it is too large for a float; float('inf') is larger than everything") from None
    if math.isnan(number):
        raise Hint("it is no number at all, and neither larger nor smaller than any")
    return number


def _truth(answer: Any) -> bool:
    if _is_truth(answer):
        return bool(answer)
    if callable(answer):
        _index(answer)
    raise TypeError


def _indices(answer: Any) -> list[int]:
    if isinstance(answer, (str, bytes, dict)) or not isinstance(answer, Iterable):
        raise TypeError
    found: list[int] = []
    for value in answer:
        if len(found) == _MOST_NUMBERS:
            raise Hint(f"it has more than {_MOST_NUMBERS:,} elements; does it end?")
        try:
            found.append(_index(value))
        except TypeError:
            raise Hint(f"element {len(found)} is {_words(value)}") from None
    return found


WHOLE_NUMBER = Returns("a whole number", _index)
NUMBER = Returns("a number", _real)
TRUTH = Returns("True or False", _truth)
WHOLE_NUMBERS = Returns("a list of whole numbers", _indices)
ANYTHING = Returns("anything", lambda answer: answer)


def optional(returns: Returns) -> Returns:
    """None is an answer too."""
    return Returns(
        f"{returns.words} or None",
        lambda answer: None if answer is None else returns.convert(answer),
    )


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Equal, where floats may differ by `tolerance`, relative or absolute; NaN equals NaN."""
    if isinstance(one, float) or isinstance(other, float):
        if not (isinstance(one, (int, float)) and isinstance(other, (int, float))):
            return False
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in pairs)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], tolerance) for k in one)
    try:
        return bool(one == other)
    except Exception:  # Arrays, which answer element by element: convert them in the exercise.
        return False
