"""The growing totals that the engine updates at every step, until a reader asks for
the `RunTotals`.

The fields of a step and of its parts say which values are summed and which peaks are kept
(`parts.totalling`). The function that adds a step is generated from them once, when this file is
imported: a loop over names at every step would take three times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import zip_longest
from operator import attrgetter
from typing import Any, ClassVar, get_type_hints

from minserve.request import RequestMetrics
from minserve.trace.parts import RoomParts
from minserve.trace.schema import STEPS
from minserve.trace.step import StepTrace
from minserve.trace.table import Column
from minserve.trace.totals import RunTotals

_ROOMS: dict[str, type[Any]] = {
    item.name: get_type_hints(RoomParts)[item.name] for item in fields(RoomParts)
}
_OWN = tuple(item.name for item in fields(RunTotals) if item.name not in _ROOMS)
_own_values = attrgetter(*_OWN)
_PATHS = {name: name for name in _OWN} | {
    f"{room}__{item.name}": f"{room}.{item.name}"
    for room, part in _ROOMS.items()
    for item in fields(part)
}
"""Attribute of a tally -> its path in `RunTotals`."""


def totalled(columns: tuple[Column, ...]) -> Iterator[tuple[str, Column]]:
    """(attribute of a tally, column of a step) for each column that has a total.

    Raises TypeError for a total that is missing in `RunTotals`, for a field in one of
    `RoomParts` that has no default or no total, and for a list that is not summed.
    """
    for column in columns:
        if column.part in _ROOMS and (column.required or column.total is None):
            raise TypeError(
                f"{column.path} needs a default and a total, because RunTotals has the part "
                f"{column.part} too: field(default=0, metadata=summed())"
            )
        if column.total is None:
            continue
        if column.is_list and column.total.kind != "sum":
            raise TypeError(f"{column.path} is a list: it can be summed, and has no peak")
        if column.part in _ROOMS:
            yield f"{column.part}__{column.name}", column
            continue
        name = column.total.name or column.name
        if name not in _OWN:
            raise TypeError(f"{column.path} totals as {name}, a field that RunTotals has not")
        yield name, column


_HEAD = """
def add_step(self, step):
    if self.first_start_s is None:
        self.first_start_s = step.start_s
    self.last_end_s = step.end_s
    self.steps += 1
    self.busy_s += step.end_s - step.start_s
"""


def _add_step() -> Callable[[Tally, StepTrace], None]:
    """Generate a function with one line per total: `self.hit_tokens += blocks.hit_tokens`."""
    lines = [_HEAD, *(f"    {part} = step.{part}\n" for part in STEPS.parts)]
    for total, column in totalled(STEPS.columns):
        value = f"{column.part or 'step'}.{column.name}"
        if column.is_list:
            lines.append(f"    if {value}:\n        self.{total} = added(self.{total}, {value})\n")
        elif column.total and column.total.kind == "sum":
            lines.append(f"    self.{total} += {value}\n")
        else:
            # A comparison is three times cheaper than max().
            lines.append(f"    if {value} > self.{total}:\n        self.{total} = {value}\n")
    made: dict[str, Any] = {"added": added}
    exec(compile("".join(lines), f"<{__name__}.add_step>", "exec"), made)
    function: Callable[[Tally, StepTrace], None] = made["add_step"]
    return function


def added(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Sums by index; the shorter one counts as 0 beyond its end."""
    return tuple(a + b for a, b in zip_longest(first, second, fillvalue=0))


class Tally:
    """Totals that grow. Not locked: `RunTrace` has the lock."""

    __slots__ = tuple(_PATHS)

    steps: int
    finished_requests: int
    finished_prompt_tokens: int
    finished_output_tokens: int

    add_step: ClassVar[Callable[[Tally, StepTrace], None]] = _add_step()
    """Count one more step."""

    def __init__(self, totals: RunTotals | None = None) -> None:
        start = RunTotals() if totals is None else totals
        for name, path in _PATHS.items():
            setattr(self, name, attrgetter(path)(start))

    def add_request(self, metrics: RequestMetrics) -> None:
        """Count one more finished request."""
        self.finished_requests += 1
        self.finished_prompt_tokens += metrics.num_prompt_tokens
        self.finished_output_tokens += metrics.num_output_tokens

    def totals(self) -> RunTotals:
        """The totals so far: a copy."""
        rooms = {
            room: part(**{it.name: getattr(self, f"{room}__{it.name}") for it in fields(part)})
            for room, part in _ROOMS.items()
        }
        return RunTotals(*_own_values(self), **rooms)
