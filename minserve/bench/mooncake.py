"""Traces as JSON lines in Mooncake's form, and the traffic they stand for.

A line says when a request comes (milliseconds), how long its prompt and its answer are, and which
blocks of 512 prompt tokens it begins with: two requests that share the first ids share that prefix
(Qin et al., arXiv 2407.00079). Tokens are not in a trace; they are drawn from the ids, so that
equal ids are equal tokens. Knows nothing about engines.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minserve.bench.traffic import TimedRequest, Traffic, fixed_length

BLOCK_TOKENS = 512
"""Prompt tokens that one hash id stands for."""


@dataclass(frozen=True)
class TraceEntry:
    """One request of a trace."""

    timestamp: int
    """Milliseconds from the trace's start."""
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]
    """One per block of the prompt, the last one partly filled."""

    def __post_init__(self) -> None:
        blocks = -(-self.input_length // BLOCK_TOKENS)
        if self.input_length < 1 or self.output_length < 1 or len(self.hash_ids) != blocks:
            raise ValueError(
                f"{self}: expected lengths of at least 1 and {blocks} hash ids, one for every "
                f"{BLOCK_TOKENS} tokens of the prompt"
            )


def read_trace(path: str | Path) -> tuple[TraceEntry, ...]:
    """The requests of a file. Raises ValueError, naming the line, for one that is no request."""
    entries = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found = json.loads(line)
            entry = TraceEntry(
                found["timestamp"],
                found["input_length"],
                found["output_length"],
                tuple(found["hash_ids"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{Path(path).name}, line {number}: expected a JSON object with timestamp, "
                f"input_length, output_length and hash_ids ({error})"
            ) from None
        entries.append(entry)
    return tuple(entries)


def trace_text(entries: Iterable[TraceEntry]) -> str:
    """The file's text."""
    return "".join(json.dumps(vars(entry)) + "\n" for entry in entries)


def trace_traffic(entries: Sequence[TraceEntry], vocab_size: int, name: str = "trace") -> Traffic:
    """Requests of exactly these lengths, greedy. Where all come at the same time there is no rate;
    otherwise the rate is the trace's own."""
    times = [entry.timestamp for entry in entries]
    span_s = (max(times) - min(times)) / 1e3
    rate = None if span_s == 0 else (len(entries) - 1) / span_s
    requests = []
    last = times[0]
    for entry in entries:
        gap_s, last = (entry.timestamp - last) / 1e3, entry.timestamp
        requests.append(
            TimedRequest(
                gap_s * (rate or 0.0),
                _prompt(entry, vocab_size),
                fixed_length(entry.output_length),
            )
        )
    return Traffic(name, tuple(requests), rate, 0)


def _prompt(entry: TraceEntry, vocab_size: int) -> tuple[int, ...]:
    tokens: list[int] = []
    for block in entry.hash_ids:
        draw = random.Random(f"block {block}")
        # 0 and 1 are left out because checkpoints use them for special tokens.
        tokens += [draw.randrange(2, vocab_size) for _ in range(BLOCK_TOKENS)]
    return tuple(tokens[: entry.input_length])
