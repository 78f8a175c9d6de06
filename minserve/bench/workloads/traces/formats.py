"""Readers of other public traces; each returns the rows that `mooncake` writes.

Azure's LLM inference traces (Patel et al., arXiv 2311.18677) and BurstGPT (Wang et al., arXiv
2401.17644) are CSV with lengths; ShareGPT is JSON with text and without times. None of them says
which prompts share prefixes, except for the turns of a conversation.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from minserve.bench.workloads.traces.mooncake import read_mooncake
from minserve.bench.workloads.traces.rows import TraceError, TraceRow, whole
from minserve.files.json_file import FileError


def _csv_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [field for field in fields if field not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise TraceError(path, 1, missing[0], f"no such column; the header has: {found}")
        for row in reader:
            for field in fields:
                if row[field] in (None, ""):
                    raise TraceError(path, reader.line_num, field, "it is empty")
            yield reader.line_num, row


def read_azure(path: str | Path) -> list[TraceRow]:
    """`TIMESTAMP,ContextTokens,GeneratedTokens`; timestamps with up to seven digits after the
    point. Raises TraceError."""
    path = Path(path)
    times, lengths = [], []
    for line, row in _csv_rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        text = row["TIMESTAMP"]
        head, point, digits = text.partition(".")
        fraction, zone = digits[:6], digits[7:] if digits[6:7].isdigit() else digits[6:]
        try:
            times.append(datetime.fromisoformat(f"{head}{point}{fraction}{zone}"))
        except ValueError:
            raise TraceError(
                path, line, "TIMESTAMP", f"{text!r}, expected 2023-11-16 18:15:46.6805900"
            ) from None
        lengths.append(
            (
                whole(row["ContextTokens"], path, line, "ContextTokens"),
                whole(row["GeneratedTokens"], path, line, "GeneratedTokens"),
            )
        )
    if not times:
        raise TraceError(path, 2, "", "the file has no request")
    first = min(times)
    return [
        TraceRow((time - first).total_seconds(), prompt, output)
        for time, (prompt, output) in zip(times, lengths, strict=True)
    ]


def read_burstgpt(path: str | Path) -> list[TraceRow]:
    """`Timestamp,Model,Request tokens,Response tokens,...`; seconds. Requests that failed, which
    have no response tokens, are omitted. Raises TraceError."""
    path = Path(path)
    rows = []
    for line, row in _csv_rows(path, ("Timestamp", "Request tokens", "Response tokens")):
        try:
            time_s = float(row["Timestamp"])
        except ValueError:
            raise TraceError(
                path, line, "Timestamp", f"{row['Timestamp']!r}, expected seconds"
            ) from None
        output = whole(row["Response tokens"], path, line, "Response tokens", 0)
        prompt = whole(row["Request tokens"], path, line, "Request tokens")
        if output:
            rows.append(TraceRow(time_s, prompt, output))
    if not rows:
        raise TraceError(path, 2, "", "the file has no request that was answered")
    first = min(row.timestamp_s for row in rows)
    return [TraceRow(r.timestamp_s - first, r.input_tokens, r.output_tokens) for r in rows]


def read_sharegpt(
    path: str | Path,
    count_tokens: Callable[[str], int] = lambda text: max(1, len(text) // 4),
    interval_s: float = 0.0,
) -> list[TraceRow]:
    """A JSON list of `{"conversations": [{"from": ..., "value": ...}, ...]}`: the first question
    and answer of each, as in vLLM's benchmarks.

    It has no times: requests arrive every `interval_s`. `count_tokens` should be a tokenizer's;
    four characters per token is a rule of thumb. Conversations without an answer are omitted.
    Raises TraceError; its line is the conversation's number.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(path, getattr(error, "lineno", 1), "", f"not JSON ({error})") from None
    if not isinstance(data, list):
        raise TraceError(path, 1, "", f"a JSON {type(data).__name__}, expected a list")
    rows: list[TraceRow] = []
    for number, entry in enumerate(data, start=1):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise TraceError(path, number, "conversations", "expected a list of turns")
        if len(turns) < 2:
            continue
        texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
        for text in texts:
            if not isinstance(text, str):
                raise TraceError(path, number, "value", f"{text!r}, expected text")
        prompt, answer = (count_tokens(str(text)) for text in texts)
        rows.append(TraceRow(len(rows) * interval_s, prompt, answer))
    if not rows:
        raise TraceError(path, 1, "", "the file has no conversation with an answer")
    return rows


READERS: Mapping[str, Callable[[str | Path], list[TraceRow]]] = {
    "mooncake": read_mooncake,
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "sharegpt": read_sharegpt,
}


def read_trace(path: str | Path, form: str | None = None) -> list[TraceRow]:
    """Read a trace of a named format; None: guessed from the name and the first line.

    Raises TraceError, or FileError for an unknown format and for what is no text.
    """
    path = Path(path)
    try:
        if form is None:
            form = _guess(path)
        if form not in READERS:
            raise FileError(
                f"{path.name}: {form or 'it'} is none of the trace formats that are read: "
                f"{', '.join(READERS)}"
            )
        return READERS[form](path)
    except UnicodeDecodeError:
        raise FileError(f"{path.name} is no text: give a recorded trace") from None


def _guess(path: Path) -> str:
    """The format of a file, by its first line; "" where it is none."""
    with path.open(encoding="utf-8-sig") as lines:
        first = lines.readline().strip()
    guesses = {
        "azure": first.startswith("TIMESTAMP,"),
        "burstgpt": first.startswith("Timestamp,"),
        "sharegpt": first.startswith("["),
        "mooncake": first.startswith("{"),
    }
    return next((name for name, fits in guesses.items() if fits), "")
