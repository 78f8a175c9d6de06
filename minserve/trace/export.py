"""A trace as JSON and as data frames.

The JSON is a table: column names once, then a row per step, so that a hundred thousand steps stay
readable in seconds. Floats are written so that they read back exactly.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minserve.request import RequestMetrics
from minserve.trace.run import FinishedRequest, RunTrace, TraceSnapshot
from minserve.trace.step import RequestStep, StageTimes, StepPages, StepTrace, StepWork

if TYPE_CHECKING:
    import pandas

SCHEMA = "minserve.trace"
VERSION = 3

_NESTED = {"stages": StageTimes, "work": StepWork, "pages": StepPages}
_STEP_FIELDS = tuple(item.name for item in fields(StepTrace))
PLAIN = tuple(name for name in _STEP_FIELDS if name not in (*_NESTED, "requests", "cached_pages"))
STAGES = tuple(item.name for item in fields(StageTimes))
WORK = tuple(item.name for item in fields(StepWork))
PAGES = tuple(item.name for item in fields(StepPages))
PART = tuple(item.name for item in fields(RequestStep))
METRICS = tuple(item.name for item in fields(RequestMetrics))

STEP_COLUMNS = (*PLAIN, *STAGES, *WORK, *PAGES)
"""Columns of a step's row; what it did for each request is kept beside the table."""
REQUEST_COLUMNS = ("request_id", "sample_index", "finish_reason", *METRICS)


class TraceFormatError(ValueError):
    """Text that is not a trace this version of minserve can read. The message says why."""


def step_row(step: StepTrace) -> list[Any]:
    """The values of `STEP_COLUMNS` for one step."""
    return [
        *(getattr(step, name) for name in PLAIN),
        *(getattr(step.stages, name) for name in STAGES),
        *(getattr(step.work, name) for name in WORK),
        *(getattr(step.pages, name) for name in PAGES),
    ]


def request_row(request: FinishedRequest) -> list[Any]:
    """The values of `REQUEST_COLUMNS` for one finished request."""
    return [
        request.request_id,
        request.sample_index,
        request.finish_reason,
        *(getattr(request.metrics, name) for name in METRICS),
    ]


def to_json(trace: RunTrace, path: str | Path | None = None) -> str:
    """The trace as JSON text, also written to `path` (compressed where it ends in .gz)."""
    snapshot = trace.snapshot()
    header = asdict(snapshot.header)
    text = json.dumps(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "header": header,
            "max_steps": trace.max_steps,
            "max_requests": trace.max_requests,
            "totals": asdict(snapshot.totals),
            "step_columns": STEP_COLUMNS,
            "steps": [step_row(step) for step in snapshot.steps],
            "detail_columns": PART,
            # Row of the step table -> what that step did for each request.
            "detail": {
                str(row): [[getattr(part, name) for name in PART] for part in step.requests]
                for row, step in enumerate(snapshot.steps)
                if step.requests
            },
            "cached_pages": {
                str(row): step.cached_pages
                for row, step in enumerate(snapshot.steps)
                if step.cached_pages
            },
            "request_columns": REQUEST_COLUMNS,
            "requests": [request_row(request) for request in snapshot.requests],
        },
        separators=(",", ":"),
    )
    if path is not None:
        target = Path(path)
        data = text.encode()
        # Renamed when complete, so that nobody reads half a file.
        partial = target.with_name(target.name + ".tmp")
        # A fixed time stamp: the same trace gives the same file.
        partial.write_bytes(gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)
        partial.replace(target)
    return text


def steps_dataframe(snapshot: TraceSnapshot) -> pandas.DataFrame:
    """One row per step; `attrs` carry where the run comes from."""
    frame = _frame(STEP_COLUMNS, [step_row(step) for step in snapshot.steps], snapshot)
    frame["duration_s"] = frame["end_s"] - frame["start_s"]
    frame["num_tokens"] = frame["num_prefill_tokens"] + frame["num_decode_tokens"]
    frame["flops"] = frame["linear_flops"] + frame["attention_flops"]
    frame["bytes"] = frame[
        ["weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes"]
    ].sum(axis=1)
    return frame


def requests_dataframe(snapshot: TraceSnapshot) -> pandas.DataFrame:
    """One row per finished request, with its latencies in seconds."""
    rows = [
        [*request_row(request), *(getattr(request.metrics, name) for name in _LATENCIES)]
        for request in snapshot.requests
    ]
    return _frame((*REQUEST_COLUMNS, *_LATENCIES), rows, snapshot)


_LATENCIES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")


def _frame(
    columns: Sequence[str], rows: list[list[Any]], snapshot: TraceSnapshot
) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "a trace becomes a data frame with pandas, which is not installed: "
            "pip install 'minserve[lab]'"
        ) from None
    frame = pandas.DataFrame(rows, columns=list(columns))
    frame.attrs = {
        "model": snapshot.header.model,
        "device": snapshot.header.device,
        "provenance": snapshot.header.provenance,
    }
    return frame
