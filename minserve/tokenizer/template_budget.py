"""The budget of a chat template: computing time, and characters that its operations produce.

Each loop iteration, call, filter and operator whose result can be larger than its input is charged
before it runs, so the budget bounds memory as well as time. Knows nothing about jinja2.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any

from minserve.clock import thread_cpu_s

MAX_SECONDS = 1.0
"""Seconds of computing time, not of the wall clock, so that a busy machine refuses no template. A
usual chat takes a millisecond."""
MAX_CHARS = 100_000_000
"""Characters produced in total, including intermediate results. A usual chat produces ten
times its own length."""
MAX_WEIGHT = 4_000_000
"""Characters of one nested value written out. A list that holds one list twice
doubles at each level."""
_ITEM_CHARS = 8
"""Characters charged for an item of a list, for its reference."""
_STEPS_PER_LOOK = 32
_MAX_BITS = 4096
"""Bits of an integer; Python refuses to convert much longer ones to text."""
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{|\d{5,}")
"""A width of five digits or more, or one that is an argument."""
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class TemplateLimit(Exception):
    """A template that takes too long or produces too much. The message says which."""


class Budget:
    """The budget that is left for one rendering."""

    __slots__ = ("chars", "deadline", "until_look")

    def __init__(self) -> None:
        self.chars = MAX_CHARS
        self.until_look = 0
        # Not a measurement, so it does not come from the engine's clock.
        self.deadline = thread_cpu_s() + MAX_SECONDS

    def charge(self, chars: int) -> None:
        """Spend this many characters. Raises TemplateLimit if they, or the time, are used up."""
        self.chars -= 1 + chars
        if self.chars < 0:
            raise TemplateLimit(f"it produces more than {MAX_CHARS:,} characters on its way")
        # Reading the clock takes as long as the rest, so it is read for large amounts and for
        # some small ones.
        self.until_look -= 1 + chars // 64
        if self.until_look < 0:
            self.until_look = _STEPS_PER_LOOK
            if thread_cpu_s() > self.deadline:
                raise TemplateLimit(f"it computes for more than {MAX_SECONDS} seconds")


_current: ContextVar[Budget | None] = ContextVar("chat template budget", default=None)


class spending:
    """A context in which this thread's templates spend one new budget."""

    def __enter__(self) -> None:
        self._token = _current.set(Budget())

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


def charge(chars: int) -> None:
    """Spend from the current budget. While a template is compiled there is no budget, and only the
    size of folded constants is limited."""
    budget = _current.get()
    if budget is not None:
        budget.charge(chars)
    elif chars > MAX_WEIGHT:
        raise TemplateLimit(f"it produces a constant of {chars:,} characters")


def charge_result(value: Any) -> Any:
    """Charge for the length of a value; returns the value."""
    if isinstance(value, (str, bytes)):
        charge(len(value))
    elif isinstance(value, (list, tuple, dict)):
        charge(len(value) * _ITEM_CHARS)
    return value


def charge_nested(value: Any) -> tuple[int, int]:
    """Charge for writing out or comparing a value with everything in it; returns its
    weight and depth."""
    if isinstance(value, (str, bytes)):
        charge(len(value))
        return len(value), 0
    if not isinstance(value, _CONTAINERS):
        charge(0)
        return 1, 0
    weight = depth = 0
    level: list[Any] = [value]
    while level:
        below: list[Any] = []
        for each in level:
            weight += _ITEM_CHARS
            if isinstance(each, (str, bytes)):
                weight += len(each)
            elif isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, _CONTAINERS):
                below.extend(each)
            if weight + _ITEM_CHARS * len(below) > MAX_WEIGHT:
                raise TemplateLimit(f"it handles a value of more than {MAX_WEIGHT:,} characters")
        level = below
        depth += 1
    charge(weight)
    return weight, depth


def charge_binary(operator: str, left: Any, right: Any) -> None:
    """Charge for `+`, `*`, `**` and `%` by the size of their result."""
    if operator == "+":
        charge_result(left)
        charge_result(right)
    elif operator == "%" and isinstance(left, (str, bytes)):
        check_format(left)
        charge(len(left))
        charge_nested(right)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else 0
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise TemplateLimit(f"it makes a number of {bits:,} bits")
        charge(0)
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(times, int):
                item = 1 if isinstance(sequence, (str, bytes)) else _ITEM_CHARS
                charge(len(sequence) * max(times, 0) * item)


def check_format(template: str | bytes) -> None:
    """Refuse a format that pads to a large width: with long numbers, or widths from arguments."""
    text = template if isinstance(template, str) else template.decode("latin-1")
    if _WIDE_FORMAT.search(text):
        raise TemplateLimit("it formats to a width of five digits or more, or of an argument")


def charge_method(method: Any, args: tuple[Any, ...]) -> None:
    """Charge, before it runs, for a method of a string that may return more than it is given."""
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, (str, bytes)):
        if name == "to_bytes":
            charge(_integers(args))
        return
    if name in ("center", "ljust", "rjust", "zfill"):
        charge(_integers(args))
    elif name == "expandtabs":
        charge(len(text) * max(1, _integers(args)))
    elif name == "replace" and len(args) >= 2 and all(isinstance(a, type(text)) for a in args[:2]):
        charge_replace(text, args[0], args[1])
    elif name == "translate" and args and isinstance(args[0], dict):
        longest = max((len(v) for v in args[0].values() if isinstance(v, str)), default=1)
        charge(len(text) * max(1, longest))
    elif name == "join" and args:
        charge_join(text, args[0])


def charge_replace(text: Any, old: Any, new: Any) -> None:
    """Charge for every occurrence."""
    found = text.count(old) if len(new) > len(old) else 0
    charge(len(text) + found * (len(new) - len(old)))


def charge_join(separator: Any, parts: Any) -> None:
    """Charge for a joined list: its parts, and the separators between them."""
    if isinstance(parts, (list, tuple, dict, str)):
        charge_nested(parts)
        charge(len(parts) * len(separator))


def _integers(args: tuple[Any, ...]) -> int:
    return sum(abs(each) for each in args if isinstance(each, int))
