"""What the reader has scored and committed to, kept in `work/progress.json`; with a dashboard.

Written whole and renamed into place, under a lock that other notebooks respect; a damaged file is
set aside, never deleted, and never stops a chapter. Knows nothing about panels: they record a key,
points, and out of how many.
"""

from __future__ import annotations

import base64
import datetime
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ipywidgets as widgets
from filelock import FileLock, Timeout

from minserve.files import cache_dir
from minserve.files.json_file import read_bytes
from widgets.notebooks.checkout import checkout_directory
from widgets.notebooks.fallback import bundle
from widgets.scoring.scores import (
    KINDS,
    MAX_BYTES,
    Commit,
    Entry,
    Scores,
    check,
    check_commit,
    dump,
    parse,
)
from widgets.theme import headless

LOCK_TIMEOUT_S = 10.0
"""How long another notebook may keep the file; writing it takes milliseconds."""

_lock = threading.Lock()


def default_path() -> Path:
    """`work/progress.json` of the checkout; MINSERVE_PROGRESS names another file.

    Where the lab is installed without a checkout, `work/` below the current directory.
    """
    if chosen := os.environ.get("MINSERVE_PROGRESS"):
        return Path(chosen)
    return (checkout_directory() or Path.cwd()) / "work" / "progress.json"


class Progress:
    """The scores in one file. Reads it anew every time: two notebooks may be open at once."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.notice = ""
        """What went wrong with the file, in a sentence; "" when nothing did."""

    def scores(self) -> Scores:
        """All that is in the file. Empty where there is no file, or a damaged one."""
        try:
            return self._parsed()
        except ValueError:
            pass
        # Damaged: under the lock, because another notebook may have mended it meanwhile.
        found = Scores()
        with self._locked() as locked:
            if locked:
                found = self._read()
        return found

    def entries(self) -> dict[str, Entry]:
        """Key -> entry, in the order of keys."""
        return dict(self.scores().entries)

    def commit_of(self, key: str, asked: str) -> Commit | None:
        """What was committed to under `key`; None where nothing was, or other questions were asked.

        `asked` is the questions' fingerprint.
        """
        commit = self.scores().commits.get(key)
        return commit if commit is not None and commit.asked == asked else None

    def keep(self, commit: Commit) -> None:
        """Remember a commit in place of an earlier one with its key."""
        check_commit(commit)
        self._change(lambda now: replace(now, commits={**now.commits, commit.key: commit}))

    def forget(self, key: str) -> None:
        """Drop the commits of a panel ("45b.flip") or a chapter ("45b"); the scores stay."""

        def without(now: Scores) -> Scores:
            kept = {
                name: commit
                for name, commit in now.commits.items()
                if key not in (name, name.partition(".")[0])
            }
            return replace(now, commits=kept)

        self._change(without)

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
        today = datetime.date.today().isoformat()
        new = Entry(key, kind, points, points, out_of, 1, today)
        check(new)

        def tried(now: Scores) -> Scores:
            nonlocal new
            old = now.entries.get(key)
            # Another number of points: the chapter has changed, and the scores do not compare.
            if old is not None and old.out_of == out_of:
                best, tries = max(old.best, points), old.tries + 1
                new = Entry(key, kind, old.first, best, out_of, tries, today)
            return replace(now, entries={**now.entries, key: new})

        self._change(tried)
        for each in list(_shown):
            if each.progress.path == self.path:
                each.refresh()
        return new

    def export(self) -> str:
        """All scores and commits as JSON text."""
        return dump(self.scores())

    def import_(self, text: str) -> int:
        """Merge exported scores, keeping the better of two; returns how many were read.

        Of two commits with one key, this file's own stays.

        Raises ValueError, in a sentence, for anything `export` did not write, and where the file
        of scores cannot be written.
        """
        incoming = parse(text.encode("utf-8", errors="surrogatepass"), "the text")

        def merged(now: Scores) -> Scores:
            entries = dict(now.entries)
            for key, entry in incoming.entries.items():
                ours = entries.get(key)
                if ours is None or (entry.best, entry.tries) > (ours.best, ours.tries):
                    entries[key] = entry
            return Scores(entries, {**incoming.commits, **now.commits})

        if not self._change(merged):
            raise ValueError(self.notice.rstrip("."))
        return len(incoming.entries)

    def _change(self, change: Callable[[Scores], Scores]) -> bool:
        """Read, change, write, with no other notebook in between; whether that was possible."""
        with self._locked() as locked:
            return locked and self._write(change(self._read()))

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the file is this notebook's for now; where not, `notice` says why."""
        lock = FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S)
        with _lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except Timeout:
                self.notice = (
                    f"Scores cannot be kept: another notebook has held {self.path.name} for more "
                    f"than {LOCK_TIMEOUT_S:g} seconds. Close it, or restart its kernel."
                )
                yield False
                return
            except (OSError, RuntimeError, ValueError) as error:
                self.notice = self._unwritable(error)
                yield False
                return
            try:
                yield True
            finally:
                lock.release()

    def _parsed(self) -> Scores:
        """What is in the file; nothing where there is none. Raises ValueError."""
        if not os.path.lexists(self.path):
            return Scores()
        return parse(read_bytes(self.path, max_bytes=MAX_BYTES, what="scores"), self.path)

    def _read(self) -> Scores:
        try:
            return self._parsed()
        except ValueError:
            return self._set_aside()

    def _set_aside(self) -> Scores:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        backup = self.path.with_name(f"{self.path.stem}.damaged-{stamp}.json")
        try:
            self.path.rename(backup)
            where = f"it is kept as {backup.name}"
        except OSError:
            where = "it could not be set aside"
        self.notice = f"{self.path.name} could not be read; {where}, and scores begin anew."
        return Scores()

    def _write(self, scores: Scores) -> bool:
        try:
            # Renamed when complete: another notebook sees the old file or the new one.
            cache_dir.replace(self.path, dump(scores).encode(), mode=0o644)
        except (OSError, ValueError) as error:
            self.notice = self._unwritable(error)
            return False
        return True

    def _unwritable(self, error: Exception) -> str:
        said = getattr(error, "strerror", None) or type(error).__name__
        return f"Scores cannot be kept: {self.path.name}: {said}."


_shown: WeakSet[Dashboard] = WeakSet()
"""The dashboards of this kernel: they follow what its panels record."""


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
        _shown.add(self)

    def refresh(self) -> None:
        """Show what the file has now."""
        scores = self.progress.scores()
        self.table.value = _table(scores.entries)
        self._say(self.progress.notice)
        data = base64.b64encode(dump(scores).encode()).decode()
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
            content = bytes(item["content"][: MAX_BYTES + 1])
            self.import_text(content.decode("utf-8", errors="replace"))

    def _say(self, text: str) -> None:
        self.message.value = f'<div role="status">{escape(text)}</div>' if text else ""

    def __repr__(self) -> str:
        count = len(self.progress.entries())
        return f"Dashboard: {count} scored panels" if count else "Dashboard: nothing scored yet"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if headless():
            # Scores are private: none are stored with a chapter.
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
