"""What the reader has scored, kept in `work/progress.json`, with export, import and a dashboard.

Written whole and renamed into place; a damaged file is set aside, never deleted, and never stops a
chapter. Knows nothing about panels: they record a key, points, and out of how many.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from widgets.fallback import bundle
from widgets.theme import headless

VERSION = 1
KINDS = ("predict", "estimate", "check", "recap")

_lock = threading.Lock()


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


def default_path() -> Path:
    """`work/progress.json` of the checkout; MINSERVE_PROGRESS names another file.

    Where the lab is installed without a checkout, `work/` below the current directory.
    """
    if chosen := os.environ.get("MINSERVE_PROGRESS"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parent.parent
    root = checkout if (checkout / "labs").is_dir() else Path.cwd()
    return root / "work" / "progress.json"


class Progress:
    """The scores in one file. Reads it anew every time: two notebooks may be open at once."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.notice = ""
        """What went wrong with the file, in a sentence; "" when nothing did."""

    def entries(self) -> dict[str, Entry]:
        """Key -> entry, in the order of keys. Empty where there is no file, or a damaged one."""
        with _lock:
            return self._read()

    def record(self, key: str, kind: str, points: float, out_of: float) -> Entry:
        """Note one try. The first one's points stay; later ones can only raise `best`.

        Raises ValueError for an unknown kind, or points that do not fit. A file that cannot be
        written costs the score, not the chapter: `notice` says so.
        """
        if kind not in KINDS or not 0 <= points <= out_of or out_of <= 0:
            raise ValueError(
                f"record({key!r}, kind={kind!r}, points={points}, out_of={out_of}): expected a "
                f"kind of {', '.join(KINDS)} and 0 <= points <= out_of"
            )
        with _lock:
            entries = self._read()
            old = entries.get(key)
            today = datetime.date.today().isoformat()
            if old is None or old.out_of != out_of:
                # Another number of points: the chapter has changed, and the scores do not compare.
                new = Entry(key, kind, points, points, out_of, 1, today)
            else:
                best = max(old.best, points)
                new = Entry(key, kind, old.first, best, out_of, old.tries + 1, today)
            self._write(entries | {key: new})
        return new

    def export(self) -> str:
        """All scores as JSON text."""
        return _dump(self.entries())

    def import_(self, text: str) -> int:
        """Merge exported scores, keeping the better of two; returns how many were read.

        Raises ValueError, in a sentence, for anything `export` did not write.
        """
        incoming = _parse(text)
        with _lock:
            merged = self._read()
            for key, entry in incoming.items():
                ours = merged.get(key)
                if ours is None or (entry.best, entry.tries) > (ours.best, ours.tries):
                    merged[key] = entry
            self._write(merged)
        return len(incoming)

    def _read(self) -> dict[str, Entry]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._set_aside(error)
        try:
            return _parse(text)
        except ValueError as error:
            return self._set_aside(error)

    def _set_aside(self, error: Exception) -> dict[str, Entry]:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        backup = self.path.with_name(f"{self.path.stem}.damaged-{stamp}.json")
        try:
            self.path.rename(backup)
            where = f"it is kept as {backup.name}"
        except OSError:
            where = "it could not be set aside"
        self.notice = f"{self.path.name} could not be read; {where}, and scores begin anew."
        return {}

    def _write(self, entries: Mapping[str, Entry]) -> None:
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(_dump(entries), encoding="utf-8")
            # Renamed when complete: whoever reads meanwhile sees the old file or the new one.
            partial.replace(self.path)
        except OSError as error:
            self.notice = f"Scores cannot be kept: {self.path.name}: {error.strerror}."


def _dump(entries: Mapping[str, Entry]) -> str:
    rows = [asdict(entries[key]) for key in sorted(entries)]
    return json.dumps({"version": VERSION, "entries": rows}, indent=1) + "\n"


def _parse(text: str) -> dict[str, Entry]:
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r}, expected {VERSION}")
        entries = [Entry(**row) for row in data["entries"]]
        for entry in entries:
            if entry.kind not in KINDS or not 0 <= entry.best <= entry.out_of:
                raise ValueError(f"entry {entry.key!r} does not add up")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a file of scores: {error}") from None
    return {entry.key: entry for entry in sorted(entries, key=lambda each: each.key)}


class Dashboard:
    """Scores by chapter, with export and import."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.table = widgets.HTML()
        self.message = widgets.HTML()
        self.refresh_button = widgets.Button(description="Refresh", tooltip="Read the scores again")
        self.upload = widgets.FileUpload(
            accept=".json", multiple=False, description="Import scores", tooltip="Import scores"
        )
        self.export_link = widgets.HTML()
        self.refresh_button.on_click(lambda button: self.refresh())
        self.upload.observe(self._uploaded, "value")
        row = widgets.HBox([self.refresh_button, self.upload, self.export_link])
        self.widget = widgets.VBox([self.table, row, self.message])
        self.refresh()

    def refresh(self) -> None:
        """Show what the file has now."""
        entries = self.progress.entries()
        self.table.value = _table(entries)
        self._say(self.progress.notice)
        data = base64.b64encode(_dump(entries).encode()).decode()
        self.export_link.value = (
            f'<a download="minserve-progress.json" href="data:application/json;base64,{data}">'
            "Export scores</a>"
        )

    def import_text(self, text: str) -> None:
        """Merge exported scores and say how many; a sentence for anything else."""
        try:
            count = self.progress.import_(text)
        except ValueError as error:
            self._say(f"Nothing was imported: {error}.")
            return
        self.refresh()
        self._say(f"Imported {count} scores; the better of two was kept.")

    def _uploaded(self, change: Mapping[str, Any]) -> None:
        for item in change["new"]:
            self.import_text(bytes(item["content"]).decode("utf-8", errors="replace"))

    def _say(self, text: str) -> None:
        self.message.value = f'<div role="status">{escape(text)}</div>' if text else ""

    def __repr__(self) -> str:
        count = len(self.progress.entries())
        return f"Dashboard: {count} scored panels" if count else "Dashboard: nothing scored yet"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if headless():
            # The scores of whoever executed a chapter are nobody else's business.
            return {"text/plain": "Dashboard: your scores appear here when the chapter runs"}
        return bundle(self.widget, repr(self), **options)


def _table(entries: Mapping[str, Entry]) -> str:
    if not entries:
        return "<p>Nothing scored yet. Predictions, estimates, exercises and recaps count.</p>"
    chapters: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries.values():
        chapters.setdefault(entry.chapter, {}).setdefault(entry.kind, []).append(entry)
    head = "".join(f'<th scope="col">{kind}</th>' for kind in (*KINDS, "first try", "best"))
    rows = []
    for chapter, kinds in sorted(chapters.items()):
        cells = "".join(f"<td>{_points(kinds.get(kind, ()))}</td>" for kind in KINDS)
        every = [entry for found in kinds.values() for entry in found]
        total = sum(entry.out_of for entry in every)
        first, best = sum(e.first for e in every), sum(e.best for e in every)
        cells += f"<td>{first:g} of {total:g}</td><td>{best:g} of {total:g}</td>"
        rows.append(f'<tr><th scope="row">{escape(chapter)}</th>{cells}</tr>')
    return (
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        "<caption>Your scores, by chapter</caption>"
        f'<thead><tr><th scope="col">chapter</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _points(entries: Any) -> str:
    if not entries:
        return "–"
    return f"{sum(e.best for e in entries):g} of {sum(e.out_of for e in entries):g}"


def dashboard(progress: Progress | None = None) -> Dashboard:
    """The reader's scores, for chapter 00."""
    return Dashboard(progress)
