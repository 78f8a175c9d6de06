"""A trace read back from JSON: from this machine, from a GPU's recording, or from a stranger.

Every value is checked for its type and range, column by column, so that a hundred thousand steps
stay readable in seconds and no figure meets a string where a number should be.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from minserve.files.json_file import FileError, read_bytes, shorten
from minserve.files.json_types import build
from minserve.request import FinishReason, RequestMetrics
from minserve.trace.export import (
    METRICS,
    PAGES,
    PART,
    PLAIN,
    REQUEST_COLUMNS,
    SCHEMA,
    STAGES,
    STEP_COLUMNS,
    VERSION,
    WORK,
    TraceFormatError,
)
from minserve.trace.run import FinishedRequest, RunTrace, TraceHeader
from minserve.trace.step import RequestStep, StageTimes, StepPages, StepTrace, StepWork
from minserve.trace.totals import RunTotals

MAX_BYTES = 1 << 30
"""Of a file, and of its text: some million steps."""
_MOST = 1e24
"""No count, byte or second of a run is larger."""


def from_json(source: str | Path) -> RunTrace:
    """A trace from JSON text or from a file. Raises TraceFormatError for anything else."""
    text = source if isinstance(source, str) and source.lstrip().startswith("{") else _read(source)
    try:
        data = json.loads(text)
    except RecursionError:
        raise TraceFormatError("not a trace: it is nested too deeply") from None
    except ValueError as error:
        raise TraceFormatError(
            f"not a trace: the JSON breaks off or is damaged ({error})"
        ) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise TraceFormatError(
            f"not a minserve trace: expected a JSON object whose schema is {SCHEMA!r}; "
            "RunTrace.to_json writes one"
        )
    if data.get("version") != VERSION:
        raise TraceFormatError(
            f"this trace has version {shorten(repr(data.get('version')))}, and this minserve reads "
            f"version {VERSION}: record it again, or read it with the minserve that wrote it "
            f"({_writer(data)})"
        )
    try:
        return _build(data)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise TraceFormatError(
            f"a trace of version {VERSION} with a missing or unknown part: {error!r}"
        ) from None


def _read(source: str | Path) -> str:
    path = Path(source)
    if not path.exists():
        path.stat()  # The system's own words: it may be a typing error, and no damage.
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES, what="a trace")
        if path.suffix == ".gz":
            data = _inflated(data)
        return data.decode()
    except FileError as error:
        said = str(error).removeprefix(f"{path} cannot be read as a trace: ").rstrip(".")
        raise TraceFormatError(f"not a trace: {path.name}: {said}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise TraceFormatError(f"not a trace: {path.name} is damaged ({error})") from None


def _inflated(data: bytes) -> bytes:
    """A gzip file's content, which may be a thousand times its size, and no more than allowed."""
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


def _build(data: dict[str, Any]) -> RunTrace:
    header = build(TraceHeader, data["header"], "header")
    trace = RunTrace(_size(data, "max_steps"), _size(data, "max_requests"), header)
    if set(data["step_columns"]) != set(STEP_COLUMNS):
        raise KeyError(*sorted(set(data["step_columns"]) ^ set(STEP_COLUMNS)))
    columns = _columns("steps", data["step_columns"], data["steps"], _STEP_TYPES)
    parts = _parts(data["detail_columns"], data["detail"])
    cached = _mapping("cached_pages", data.get("cached_pages", {}))
    _whole("cached_pages", chain.from_iterable(cached.values()))
    steps = []
    for row in range(len(data["steps"])):
        cells = {name: values[row] for name, values in columns.items()}
        steps.append(
            StepTrace(
                **{name: cells[name] for name in PLAIN},
                stages=StageTimes(**{name: cells[name] for name in STAGES}),
                work=StepWork(**{name: cells[name] for name in WORK}),
                pages=StepPages(**{name: cells[name] for name in PAGES}),
                requests=parts.get(str(row), ()),
                cached_pages=tuple(cached.get(str(row), ())),
            )
        )
        if steps[-1].end_s < steps[-1].start_s:
            raise ValueError(f"step {row} ends before it starts")
    totals = build(RunTotals, data["totals"], "totals")
    _numbers("totals", [getattr(totals, name) for name in RunTotals.__slots__])
    trace.restore(totals, steps, _requests(data["request_columns"], data["requests"]))
    return trace


def _requests(columns: Any, rows: Any) -> list[FinishedRequest]:
    if set(columns) != set(REQUEST_COLUMNS):
        raise KeyError(*sorted(set(columns) ^ set(REQUEST_COLUMNS)))
    found = _columns("requests", columns, rows, _REQUEST_TYPES)
    unknown = set(found["finish_reason"]) - set(get_args(FinishReason))
    if unknown:
        raise ValueError(f"requests: unknown finish_reason {shorten(repr(unknown.pop()))}")
    return [
        FinishedRequest(
            found["request_id"][row],
            found["sample_index"][row],
            found["finish_reason"][row],
            RequestMetrics(**{name: found[name][row] for name in METRICS}),
        )
        for row in range(len(rows))
    ]


def _parts(columns: Any, detail: Any) -> dict[str, tuple[RequestStep, ...]]:
    """Row of the step table -> what that step did for each request."""
    if set(columns) != set(PART):
        raise KeyError(*sorted(set(columns) ^ set(PART)))
    by_row = _mapping("detail", detail)
    rows = list(chain.from_iterable(by_row.values()))
    found = _columns("detail", columns, rows, _PART_TYPES)
    for name in ("new_token_ids", "blocks"):
        _whole(f"detail.{name}", chain.from_iterable(found[name]))
        found[name] = [tuple(values) for values in found[name]]
    made = [RequestStep(*cells) for cells in zip(*(found[name] for name in PART), strict=True)]
    places = iter(made)
    return {row: tuple(next(places) for _ in parts) for row, parts in by_row.items()}


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


def _columns(
    what: str, columns: Sequence[str], rows: Any, types: Mapping[str, frozenset[type]]
) -> dict[str, list[Any]]:
    """A table by column, each value of its column's types. Raises ValueError."""
    if type(rows) is not list or not all(type(row) is list for row in rows):
        raise ValueError(f"{what} is not a table")
    if len(columns) != len(types) or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{what}: a row has not {len(types)} values")
    found = {}
    for place, name in enumerate(columns):
        values = found[name] = [row[place] for row in rows]
        wrong = set(map(type, values)) - types[name]
        if wrong:
            raise ValueError(f"{what}.{name} has values of type {wrong.pop().__name__}")
        if types[name] & {int, float}:
            _numbers(f"{what}.{name}", values)
    return found


def _numbers(what: str, values: Iterable[Any]) -> None:
    """Raise ValueError where a number is none, or not that of a run; None passes."""
    some = [value for value in values if value is not None]
    if not set(map(type, some)) <= {int, float}:
        raise ValueError(f"{what} has values that are no numbers")
    if some and not (min(some) > -_MOST and max(some) < _MOST and all(map(math.isfinite, some))):
        raise ValueError(f"{what} has numbers that no run has")


def _whole(what: str, values: Iterable[Any]) -> None:
    """Raise ValueError for anything but whole numbers of a run."""
    some = list(values)
    if not set(map(type, some)) <= {int}:
        raise ValueError(f"{what} has values that are no whole numbers")
    _numbers(what, some)


def _types(kind: type, names: Sequence[str]) -> dict[str, frozenset[type]]:
    hints = get_type_hints(kind)
    return {name: frozenset(_json_types(hints[name])) for name in names}


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


_STEP_TYPES = {
    **_types(StepTrace, PLAIN),
    **_types(StageTimes, STAGES),
    **_types(StepWork, WORK),
    **_types(StepPages, PAGES),
}
_PART_TYPES = _types(RequestStep, PART)
_REQUEST_TYPES = {
    **_types(FinishedRequest, ("request_id", "sample_index", "finish_reason")),
    **_types(RequestMetrics, METRICS),
}
