"""Reads a trace from JSON that may come from another machine or an unknown source.

Every value is checked for its type and range, column by column: a hundred thousand steps can be
read in seconds, and no figure gets a string instead of a number.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from minserve.files.json_file import FileError, read_bytes, shorten
from minserve.files.json_types import build
from minserve.request import FinishReason
from minserve.trace.formats.consistency import contradiction
from minserve.trace.parts.requests import RequestStep
from minserve.trace.schema import DETAIL, KEYS, REQUESTS, SCHEMA, STEPS, UPGRADES, VERSION
from minserve.trace.snapshot import FinishedRequest, TraceHeader, TraceSnapshot
from minserve.trace.step import StepTrace
from minserve.trace.table import Table
from minserve.trace.totals import RunTotals

R = TypeVar("R")

MAX_BYTES = 1 << 30
"""Limit for a file and for its uncompressed text: some million steps."""
_BLANK = " \t\r\n\ufeff"
"""JSON's white space, and the byte order mark that some editors put before a text."""
_MOST = 1e24
"""Larger than any count, byte or second of a run."""


class TraceFormatError(ValueError):
    """Text that is not a trace this version of minserve can read. The message says why."""


def from_json(source: str | Path) -> TraceSnapshot:
    """A trace from JSON text or from a file. Raises TraceFormatError for anything else."""
    data = _parsed(source)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise TraceFormatError(
            f"not a minserve trace: expected a JSON object whose schema is {SCHEMA!r}; "
            "RunTrace.to_json writes one"
        )
    version = data.get("version")
    if type(version) is not int or (version != VERSION and version not in UPGRADES):
        raise TraceFormatError(
            f"this trace has version {shorten(repr(version))}, and this minserve reads "
            f"version {' or '.join(map(str, sorted({VERSION, *UPGRADES})))}: record it again, or "
            f"read it with the minserve that wrote it ({_writer(data)})"
        )
    _check_keys(version, data)
    try:
        for old in range(version, VERSION):
            data = UPGRADES[old](data)
        trace = _build(data)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise TraceFormatError(
            f"a trace of version {version} with a missing or unknown part: {error!r}"
        ) from None
    wrong = contradiction(trace)
    if wrong is not None:
        raise TraceFormatError(
            f"this trace contradicts itself: {wrong}; a column or rows may have been removed"
        )
    return trace


def _parsed(source: str | Path) -> Any:
    """The JSON value in a text or a file, which may begin with a byte order mark."""
    is_text = isinstance(source, str) and source.lstrip(_BLANK).startswith("{")
    if isinstance(source, str) and not source.strip(_BLANK):
        raise TraceFormatError("not a trace: the text is empty")
    text = (str(source) if is_text else _read(source)).lstrip(_BLANK)
    if not text:
        raise TraceFormatError(f"not a trace: {Path(source).name} is empty")
    try:
        return json.loads(text)
    except RecursionError:
        raise TraceFormatError("not a trace: it is nested too deeply") from None
    except ValueError as error:
        raise TraceFormatError(
            f"not a trace: the JSON breaks off or is damaged ({error})"
        ) from None


def _check_keys(version: int, data: Mapping[str, Any]) -> None:
    """Refuse a key of another version, or of none: what it contains would be lost."""
    for key in data:
        if key not in KEYS[version]:
            others = [str(other) for other, keys in KEYS.items() if key in keys]
            origin = f"version {' or '.join(others)}" if others else "no version that is known here"
            raise TraceFormatError(
                f"this trace says that it has version {version}, but it has the key "
                f"{shorten(repr(key))}, a key of {origin}"
            )


def _read(source: str | Path) -> str:
    path = Path(source)
    if not path.exists():
        path.stat()  # Raises the system's error: the path may be mistyped, nothing is damaged.
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES, what="a trace")
        if path.suffix.lower() == ".gz":
            data = _inflated(data)
        return data.decode()
    except FileError as error:
        said = str(error).removeprefix(f"{path} cannot be read as a trace: ").rstrip(".")
        raise TraceFormatError(f"not a trace: {path.name}: {said}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise TraceFormatError(f"not a trace: {path.name} is damaged ({error})") from None


def _inflated(data: bytes) -> bytes:
    """The content of a gzip file, at most `MAX_BYTES`: it may be a thousand times
    the file's size."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise EOFError(f"more than {MAX_BYTES:,} bytes of text")
    return text


def _writer(data: Mapping[str, Any]) -> str:
    try:
        return shorten(str(data["header"]["versions"]["minserve"]))
    except (KeyError, TypeError, IndexError):
        return "version not noted"


def _build(data: Mapping[str, Any]) -> TraceSnapshot:
    header = build(TraceHeader, {"asked": {}} | data["header"], "header")
    totals = build(RunTotals, data["totals"], "totals")
    _numbers("totals", _leaves(asdict(totals)))
    return TraceSnapshot(
        header=header,
        totals=totals,
        steps=_steps(data),
        requests=_requests(data["request_columns"], data["requests"]),
        max_steps=_size(data, "max_steps"),
        max_requests=_size(data, "max_requests"),
    )


def _leaves(values: Mapping[str, Any]) -> Iterator[Any]:
    for value in values.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif isinstance(value, tuple):
            yield from value
        else:
            yield value


def _steps(data: Mapping[str, Any]) -> tuple[StepTrace, ...]:
    columns = _columns("steps", STEPS, data["step_columns"], data["steps"])
    detail = _detail(data["detail_columns"], data["detail"])
    cached = _mapping("cached_block_ids", data.get("cached_block_ids", {}))
    _whole("cached_block_ids", chain.from_iterable(cached.values()))
    rows = [str(row) for row in range(len(data["steps"]))]
    steps = STEPS.records(
        columns,
        len(rows),
        requests=[detail.get(row, ()) for row in rows],
        cached_block_ids=[tuple(cached.get(row, ())) for row in rows],
    )
    for row, step in enumerate(steps):
        if step.end_s < step.start_s:
            raise ValueError(f"step {row} ends before it starts")
    return tuple(steps)


def _requests(columns: Any, rows: Any) -> tuple[FinishedRequest, ...]:
    found = _columns("requests", REQUESTS, columns, rows)
    unknown = set(found["finish_reason"]) - set(get_args(FinishReason))
    if unknown:
        raise ValueError(f"requests: unknown finish_reason {shorten(repr(unknown.pop()))}")
    return tuple(REQUESTS.records(found, len(rows)))


def _detail(columns: Any, detail: Any) -> dict[str, tuple[RequestStep, ...]]:
    """Row of the step table -> what that step did for each request."""
    by_row = _mapping("detail", detail)
    rows = list(chain.from_iterable(by_row.values()))
    found = _columns("detail", DETAIL, columns, rows)
    records = iter(DETAIL.records(found, len(rows)))
    return {row: tuple(next(records) for _ in parts) for row, parts in by_row.items()}


def _mapping(what: str, data: Any) -> dict[str, list[Any]]:
    """Row -> list."""
    if not isinstance(data, dict) or not all(type(each) is list for each in data.values()):
        raise ValueError(f"{what} is not lists by row")
    return data


def _size(data: Mapping[str, Any], name: str) -> int:
    value = data[name]
    if type(value) is not int or not 1 <= value <= 1 << 40:
        raise ValueError(f"{name} is {shorten(repr(value))}, expected a whole number from 1")
    return value


def _columns(what: str, table: Table[R], names: Any, rows: Any) -> dict[str, list[Any]]:
    """A table's values by column, each of its column's type. Raises ValueError.

    A column may be missing if its field has a default: the trace is older than the field. If the
    column was removed instead, `consistency` finds that its total differs.
    """
    _check_names(what, table, names)
    if type(rows) is not list or not all(type(row) is list for row in rows):
        raise ValueError(f"{what} is not a table")
    if any(len(row) != len(names) for row in rows):
        raise ValueError(f"{what}: a row has not {len(names)} values")
    types = {column.name: _json_types(column.kind) for column in table.columns}
    found = {}
    for index, name in enumerate(names):
        values = found[name] = [row[index] for row in rows]
        wrong = set(map(type, values)) - types[name]
        if wrong:
            raise ValueError(f"{what}.{name} has values of type {wrong.pop().__name__}")
        if types[name] & {int, float}:
            _numbers(f"{what}.{name}", values)
    for column in table.columns:
        if column.is_list and column.name in found:
            check = _numbers if float in get_args(column.kind) else _whole
            check(f"{what}.{column.name}", chain.from_iterable(found[column.name]))
            found[column.name] = [tuple(values) for values in found[column.name]]
    return found


def _check_names(what: str, table: Table[R], names: Any) -> None:
    """Raise ValueError for columns that are unknown, duplicated or missing."""
    if type(names) is not list or not set(map(type, names)) <= {str}:
        raise ValueError(f"the columns of {what} are not a list of names")
    if len(set(names)) != len(names):
        raise ValueError(f"{what} has a column twice")
    unknown = sorted(set(names) - set(table.names))
    if unknown:
        raise ValueError(
            f"{what} has the unknown column {shorten(repr(unknown[0]))}: a newer minserve may have "
            "written it"
        )
    missing = [c.name for c in table.columns if c.required and c.name not in names]
    if missing:
        raise ValueError(f"{what} has no column {missing[0]!r}")


def _numbers(what: str, values: Iterable[Any]) -> None:
    """Raise ValueError for a value that is not a number or outside the range of a run;
    None is allowed."""
    some = [value for value in values if value is not None]
    if not set(map(type, some)) <= {int, float}:
        raise ValueError(f"{what} has values that are no numbers")
    if some and not (min(some) > -_MOST and max(some) < _MOST and all(map(math.isfinite, some))):
        raise ValueError(f"{what} has numbers that no run has")


def _whole(what: str, values: Iterable[Any]) -> None:
    """Raise ValueError for anything but whole numbers within the range of a run."""
    some = list(values)
    if not set(map(type, some)) <= {int}:
        raise ValueError(f"{what} has values that are no whole numbers")
    _numbers(what, some)


def _json_types(hint: Any) -> set[type]:
    if hint is float:
        return {int, float}
    if get_origin(hint) is tuple:
        return {list}
    if isinstance(hint, type):
        return {hint}
    if all(isinstance(each, str) for each in get_args(hint)):  # Literal
        return {str}
    return set().union(*(_json_types(each) for each in get_args(hint)))
