"""A trace as JSON.

The JSON is a table: column names once, then a row per step, so that a hundred thousand steps can be
read in seconds. Floats are written so that they read back exactly.
"""

from __future__ import annotations

import gzip
import json
import uuid
from dataclasses import asdict
from pathlib import Path

from minserve.trace.schema import DETAIL, REQUESTS, SCHEMA, STEPS, VERSION
from minserve.trace.snapshot import TraceSnapshot


def to_json(snapshot: TraceSnapshot, path: str | Path | None = None) -> str:
    """The trace as JSON text; also written to `path`, compressed if it ends in .gz."""
    text = json.dumps(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "header": asdict(snapshot.header),
            "max_steps": snapshot.max_steps,
            "max_requests": snapshot.max_requests,
            "totals": asdict(snapshot.totals),
            "step_columns": STEPS.names,
            "steps": [STEPS.row(step) for step in snapshot.steps],
            "detail_columns": DETAIL.names,
            # Row of the step table -> what that step did for each request.
            "detail": {
                str(row): [DETAIL.row(part) for part in step.requests]
                for row, step in enumerate(snapshot.steps)
                if step.requests
            },
            "cached_block_ids": {
                str(row): step.cached_block_ids
                for row, step in enumerate(snapshot.steps)
                if step.cached_block_ids
            },
            "request_columns": REQUESTS.names,
            "requests": [REQUESTS.row(request) for request in snapshot.requests],
        },
        separators=(",", ":"),
    )
    if path is not None:
        write_file(text.encode(), Path(path))
    return text


def write_file(data: bytes, target: Path) -> None:
    """Write to a temporary file, renamed when complete, so that no reader opens half a file, and a
    full disk leaves none. Compressed if the name ends in .gz. Raises OSError."""
    if target.suffix.lower() == ".gz":
        # A fixed time stamp, so that the same trace gives the same file.
        data = gzip.compress(data, mtime=0)
    # A name of its own, because another thread or process may write the same trace. Made with
    # open(), because tempfile would hide the file from other users.
    partial = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            file.write(data)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
