"""Mooncake's trace format (Qin et al., arXiv 2407.00079): one JSON object per line.

`timestamp` in milliseconds, `input_length` and `output_length` in tokens, `hash_ids` one per 512
tokens of the prompt. It is the canonical form here, because it is the only common format that says
which prompts share prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from minserve.bench.workloads.traces.rows import BLOCK_TOKENS, TraceError, TraceRow, whole


def read_mooncake(path: str | Path) -> list[TraceRow]:
    """All rows, in the file's order. Raises TraceError."""
    path = Path(path)
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                rows.append(_row(path, number, text))
    if not rows:
        raise TraceError(path, 1, "", "the file has no request")
    return rows


def _row(path: Path, line: int, text: str) -> TraceRow:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise TraceError(path, line, "", f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise TraceError(path, line, "", f"a JSON {type(data).__name__}, expected an object")
    for field in ("timestamp", "input_length", "output_length"):
        if field not in data:
            raise TraceError(path, line, field, "it is missing")
    hash_ids = data.get("hash_ids", [])
    if not isinstance(hash_ids, list) or not all(type(each) is int for each in hash_ids):
        raise TraceError(path, line, "hash_ids", "expected a list of whole numbers")
    row = TraceRow(
        whole(data["timestamp"], path, line, "timestamp", 0) / 1000,
        whole(data["input_length"], path, line, "input_length"),
        whole(data["output_length"], path, line, "output_length"),
        tuple(hash_ids),
    )
    if hash_ids and len(hash_ids) != -(-row.input_tokens // BLOCK_TOKENS):
        raise TraceError(
            path, line, "hash_ids",
            f"{len(hash_ids)} of them for {row.input_tokens} tokens, expected one per "
            f"{BLOCK_TOKENS} tokens",
        )  # fmt: skip
    return row


def write_mooncake(rows: Iterable[TraceRow], path: str | Path) -> None:
    """Write rows; times are rounded to milliseconds."""
    with Path(path).open("w", encoding="utf-8") as out:
        for row in rows:
            data = {
                "timestamp": round(row.timestamp_s * 1000),
                "input_length": row.input_tokens,
                "output_length": row.output_tokens,
                "hash_ids": list(row.hash_ids),
            }
            out.write(json.dumps(data) + "\n")
