"""One request of a recorded trace, and the conversion of rows to traffic."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minserve.bench.workloads.traffic import TimedRequest, Traffic, fixed_length
from minserve.files.json_file import FileError

BLOCK_TOKENS = 512
"""Number of prompt tokens that each of Mooncake's hash ids covers."""


class TraceError(ValueError):
    """A file that is not a valid trace. The message names file, line and field."""

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        where = f"{path.name}, line {line}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request: when it arrived, how long it was, which prefix its prompt shares."""

    timestamp_s: float
    """Seconds since the trace's beginning."""
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    """One per 512 tokens of the prompt: equal leading ids mean an equal prefix. Empty:
    nothing is shared."""


def whole(value: object, path: Path, line: int, field: str, least: int = 1) -> int:
    """A field that must be a whole number of at least `least`. Raises TraceError."""
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if number != number or number in (math.inf, -math.inf) or number != int(number):
        raise TraceError(path, line, field, f"{value!r}, expected a whole number")
    if number < least:
        raise TraceError(path, line, field, f"{int(number)}, expected at least {least}")
    return int(number)


def to_traffic(
    rows: Sequence[TraceRow],
    *,
    name: str = "trace",
    max_len: int | None = None,
    vocab_size: int = 4000,
    seed: int = 0,
) -> Traffic:
    """The rows as requests at their own mean rate, in order of time.

    Rows whose prompt and answer are longer than `max_len` together are omitted, and the name says
    how many. Raises FileError if none is left.
    """
    ordered = sorted(rows, key=lambda row: row.timestamp_s)
    kept = [
        row for row in ordered if not max_len or row.input_tokens + row.output_tokens <= max_len
    ]
    if not kept:
        raise FileError(f"{name}: none of {len(rows)} requests fits into {max_len} tokens")
    span_s = kept[-1].timestamp_s - kept[0].timestamp_s
    rate = (len(kept) - 1) / span_s if span_s > 0 else None
    blocks: dict[int, tuple[int, ...]] = {}
    requests = []
    before_s = kept[0].timestamp_s
    for number, row in enumerate(kept):
        gap_s, before_s = row.timestamp_s - before_s, row.timestamp_s
        prompt = _prompt(row, number, blocks, vocab_size, seed)
        gap = gap_s * rate if rate else 0.0
        requests.append(TimedRequest(gap, prompt, fixed_length(row.output_tokens)))
    left_out = len(ordered) - len(kept)
    if left_out:
        name += f" ({left_out} of {len(ordered)} longer than {max_len} tokens, left out)"
    return Traffic(name, tuple(requests), rate, seed)


def _prompt(
    row: TraceRow, number: int, blocks: dict[int, tuple[int, ...]], vocab_size: int, seed: int
) -> tuple[int, ...]:
    ids = range(2, vocab_size)
    prompt: tuple[int, ...] = ()
    for hash_id in row.hash_ids:
        if hash_id not in blocks:
            draw = random.Random(f"{seed} block {hash_id}")
            blocks[hash_id] = tuple(draw.choices(ids, k=BLOCK_TOKENS))
        prompt += blocks[hash_id]
    missing = row.input_tokens - len(prompt)
    if missing > 0:
        prompt += tuple(random.Random(f"{seed} request {number}").choices(ids, k=missing))
    return prompt[: row.input_tokens]
