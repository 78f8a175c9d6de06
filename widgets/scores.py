"""The file of scores: what is in it, and what is accepted from one that was edited or uploaded.

Knows nothing about where it lies, or who writes it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from minserve.files.json_file import FileError, parse_json
from minserve.files.json_types import build

VERSION = 1
KINDS = ("predict", "estimate", "check", "recap")
MAX_BYTES = 1 << 20
"""Some thousands of scores."""
_LONGEST_KEY = 200
_MOST = 1_000_000
"""Points, and tries."""


@dataclass(frozen=True)
class Entry:
    """One scored panel. `key` is the chapter's number, a dot and a name: "45a.flip"."""

    key: str
    kind: str
    first: float
    """Points at the first try."""
    best: float
    out_of: float
    tries: int
    date: str

    @property
    def chapter(self) -> str:
        """The part of the key before the dot."""
        return self.key.partition(".")[0]


def dump(entries: Mapping[str, Entry]) -> str:
    """The file's text."""
    rows = [asdict(entries[key]) for key in sorted(entries)]
    return json.dumps({"version": VERSION, "entries": rows}, indent=1) + "\n"


@dataclass(frozen=True)
class _File:
    version: int
    entries: tuple[Entry, ...]


def parse(content: bytes, path: Path | str) -> dict[str, Entry]:
    """Raises ValueError, in a sentence, for anything that `dump` does not write."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"{len(content):,} bytes, and {MAX_BYTES:,} are allowed")
        found = build(_File, parse_json(content, path, what="scores"), "file")
        if found.version != VERSION:
            raise ValueError(f"version {found.version!r}, expected {VERSION}")
        for entry in found.entries:
            check(entry)
    except FileError as error:
        reason = str(error).removeprefix(f"{path} cannot be read as scores: ").rstrip(".")
        raise ValueError(f"not a file of scores: {reason}") from None
    except ValueError as error:
        raise ValueError(f"not a file of scores: {error}") from None
    return {entry.key: entry for entry in sorted(found.entries, key=lambda each: each.key)}


def check(entry: Entry) -> None:
    """Raise ValueError for an entry that does not add up."""
    points = 0 <= entry.first <= entry.best <= entry.out_of <= _MOST and entry.out_of > 0
    if (
        not points
        or entry.kind not in KINDS
        or not 1 <= entry.tries <= _MOST
        or not 0 < len(entry.key) <= _LONGEST_KEY
        or not entry.key.isprintable()
    ):
        raise ValueError(f"entry {entry.key[:40]!r} does not add up")
    datetime.date.fromisoformat(entry.date)
