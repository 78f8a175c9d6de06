"""Converts a record to a row of plain values, and rows back to records.

The columns are made from the fields of the record, so that a new field is a new column
everywhere. The record's own fields come first, then those of its parts: the columns of a
`StepTrace` are `index`, `start_s`, ..., followed by `schedule_s`, ... of its `stages`. Knows
nothing about which records exist.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_origin, get_type_hints

from minserve.trace.parts.totalling import Total, total_of

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Column:
    """One field of a record, or of a part of it."""

    name: str
    part: str
    """The record's field that contains it; "" for a field of the record itself."""
    kind: Any
    """The field's type."""
    required: bool
    """True if the field has no default."""
    total: Total | None
    """How it is totalled over a run."""

    @property
    def is_list(self) -> bool:
        """True if a value is several numbers, a list in JSON."""
        return get_origin(self.kind) is tuple

    @property
    def path(self) -> str:
        """The field's path in a record, such as `stages.schedule_s`."""
        return f"{self.part}.{self.name}" if self.part else self.name


class Table(Generic[R]):
    """The rows of one kind of record. Fields named in `beside` are not in the rows."""

    def __init__(self, record: type[R], beside: Collection[str] = ()) -> None:
        own, self.parts = _split(record, beside)
        self.record = record
        self.columns = (*own, *(c for name, part in self.parts.items() for c in _own(part, name)))
        self.names = tuple(column.name for column in self.columns)
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise TypeError(f"{record.__name__}: two columns of the name {', '.join(twice)}")
        self._values = attrgetter(*(column.path for column in self.columns))

    def row(self, record: R) -> tuple[Any, ...]:
        """The values of `names` for one record."""
        values: tuple[Any, ...] = self._values(record)
        return values

    def records(
        self, found: Mapping[str, Sequence[Any]], count: int, **beside: Sequence[Any]
    ) -> list[R]:
        """`count` records from their values by column; a missing column gets its default."""
        parts = {
            name: _made(kind, self._of(name, found), count) for name, kind in self.parts.items()
        }
        return _made(self.record, {**self._of("", found), **parts, **beside}, count)

    def _of(self, part: str, found: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        return {c.name: found[c.name] for c in self.columns if c.part == part and c.name in found}


def _made(kind: type[R], columns: Mapping[str, Sequence[Any]], count: int) -> list[R]:
    if not columns:
        return [kind() for _ in range(count)]
    rows = zip(*columns.values(), strict=True)
    return [kind(**dict(zip(columns, cells, strict=True))) for cells in rows]


def _split(
    record: type[Any], beside: Collection[str]
) -> tuple[tuple[Column, ...], dict[str, type[Any]]]:
    """The record's own columns, and its parts by name."""
    own: list[Column] = []
    parts: dict[str, type[Any]] = {}
    for column in _own(record):
        if isinstance(column.kind, type) and is_dataclass(column.kind):
            parts[column.name] = column.kind
        elif column.name not in beside:
            own.append(column)
    return tuple(own), parts


def _own(record: type[Any], part: str = "") -> tuple[Column, ...]:
    hints = get_type_hints(record)
    return tuple(
        Column(
            name=item.name,
            part=part,
            kind=hints[item.name],
            required=item.default is MISSING and item.default_factory is MISSING,
            total=total_of(item),
        )
        for item in fields(record)
    )
