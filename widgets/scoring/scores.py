"""The file of scores: what is in it, and what is accepted from one that was edited or uploaded.

Beside the scores it keeps what the reader committed to, so that a panel can be as it was after a
restart. Version 1 had scores only, and is still read. Knows nothing about where it lies, or who
writes it.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minserve.files.json_file import FileError, parse_json
from minserve.files.json_types import build

VERSION = 2
_READ = (1, VERSION)
KINDS = ("predict", "estimate", "check", "recap")
MAX_BYTES = 1 << 20
"""Some thousands of scores."""
_LONGEST_KEY = 200
_MOST_CHOSEN = 100
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


@dataclass(frozen=True)
class Chosen:
    """What was chosen for one question; None for what was left untouched."""

    direction: str | None = None
    number: float | None = None
    """A factor, or an estimate."""
    option: int | None = None
    """A reason, or an answer of a recap, counted from 0."""


@dataclass(frozen=True)
class Commit:
    """What the reader fixed in one panel: a prediction, an estimate, answers of a recap."""

    key: str
    asked: str
    """`widgets.scoring.questions.fingerprint` of the questions: others may have other answers."""
    chosen: tuple[Chosen, ...]
    shown: bool = False
    """True where the reader asked to be shown instead."""
    scored: bool = False
    """True once the points are among the entries."""


@dataclass(frozen=True)
class Scores:
    """The whole file, by key."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    commits: Mapping[str, Commit] = field(default_factory=dict)


def dump(scores: Scores) -> str:
    """The file's text."""
    entries = [asdict(scores.entries[key]) for key in sorted(scores.entries)]
    commits = [asdict(scores.commits[key]) for key in sorted(scores.commits)]
    content = {"version": VERSION, "entries": entries, "commits": commits}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class _File:
    version: int
    entries: tuple[Entry, ...]
    commits: tuple[Commit, ...] = ()


def parse(content: bytes, path: Path | str) -> Scores:
    """Raises ValueError, in a sentence, for anything that `dump` does not write."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"{len(content):,} bytes, and {MAX_BYTES:,} are allowed")
        found = build(_File, parse_json(content, path, what="scores"), "file")
        if found.version not in _READ:
            raise ValueError(f"version {found.version!r}, expected {VERSION}")
        for entry in found.entries:
            check(entry)
        for commit in found.commits:
            check_commit(commit)
    except FileError as error:
        reason = str(error).removeprefix(f"{path} cannot be read as scores: ").rstrip(".")
        raise ValueError(f"not a file of scores: {reason}") from None
    except ValueError as error:
        raise ValueError(f"not a file of scores: {error}") from None
    return Scores(
        {entry.key: entry for entry in sorted(found.entries, key=lambda each: each.key)},
        {commit.key: commit for commit in sorted(found.commits, key=lambda each: each.key)},
    )


def check(entry: Entry) -> None:
    """Raise ValueError for an entry that does not add up."""
    points = 0 <= entry.first <= entry.best <= entry.out_of <= _MOST and entry.out_of > 0
    if (
        not points
        or entry.kind not in KINDS
        or not 1 <= entry.tries <= _MOST
        or not _is_key(entry.key)
    ):
        raise ValueError(f"entry {entry.key[:40]!r} does not add up")
    datetime.date.fromisoformat(entry.date)


def check_commit(commit: Commit) -> None:
    """Raise ValueError for a commit that no panel makes."""
    fits = len(commit.asked) <= _LONGEST_KEY and len(commit.chosen) <= _MOST_CHOSEN
    if not (_is_key(commit.key) and fits):
        raise ValueError(f"commit {commit.key[:40]!r} does not add up")
    for chosen in commit.chosen:
        direction, number, option = chosen.direction, chosen.number, chosen.option
        if (
            direction not in (None, "up", "down", "same")
            or (number is not None and not 0 < number < math.inf)
            or (option is not None and not 0 <= option < _MOST_CHOSEN)
        ):
            raise ValueError(f"commit {commit.key[:40]!r} does not add up")


def _is_key(key: str) -> bool:
    return 0 < len(key) <= _LONGEST_KEY and key.isprintable()
