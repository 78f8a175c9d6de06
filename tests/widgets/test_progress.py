"""Scores survive damage, two notebooks, and a move to another machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from widgets.progress import Dashboard, Progress, dashboard, default_path


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "work" / "progress.json")


def test_the_first_try_stays_and_the_best_can_only_rise(progress):
    assert progress.entries() == {}
    progress.record("45a.flip", "predict", 2, 6)
    progress.record("45a.flip", "predict", 5, 6)
    entry = progress.record("45a.flip", "predict", 1, 6)
    assert (entry.first, entry.best, entry.tries, entry.chapter) == (2, 5, 3, "45a")
    assert Progress(progress.path).entries() == {"45a.flip": entry}
    assert list(progress.path.parent.iterdir()) == [progress.path]


def test_a_chapter_that_changed_its_points_begins_anew(progress):
    progress.record("00.recap", "recap", 5, 5)
    entry = progress.record("00.recap", "recap", 1, 4)
    assert (entry.best, entry.out_of, entry.tries) == (1, 4, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00\x01",
        '{"version": 99, "entries": []}',
        '{"version": 1, "entries": [{"key": "a"}]}',
        '{"version": 1, "entries": [{"key": "a", "kind": "recap", "first": 9, "best": "9",'
        ' "out_of": 5, "tries": 1, "date": ""}]}',
        '{"version": 1, "entries": [{"key": "a", "kind": "recap", "first": 9, "best": 9,'
        ' "out_of": 5, "tries": 1, "date": ""}]}',
    ],
)
def test_a_damaged_file_is_set_aside_and_never_stops_a_chapter(progress, text):
    progress.path.parent.mkdir()
    progress.path.write_text(text, encoding="utf-8")
    progress.record("00.guess", "estimate", 1, 1)
    assert list(progress.entries()) == ["00.guess"]
    (backup,) = progress.path.parent.glob("progress.damaged-*.json")
    assert backup.read_text(encoding="utf-8") == text
    assert backup.name in progress.notice


def test_a_file_that_is_not_text_is_set_aside_too(progress):
    progress.path.parent.mkdir()
    progress.path.write_bytes(b"\xff\xfe\x00")
    assert progress.entries() == {}
    assert "begin anew" in progress.notice


def test_a_place_that_cannot_be_written_costs_the_score_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    progress = Progress(blocked / "progress.json")
    progress.record("00.guess", "estimate", 1, 1)
    assert progress.notice
    assert progress.entries() == {}


@pytest.mark.parametrize(
    ("kind", "points", "out_of"), [("exam", 1, 1), ("recap", 2, 1), ("recap", -1, 1)]
)
def test_points_that_do_not_fit_are_refused(progress, kind, points, out_of):
    with pytest.raises(ValueError, match="expected"):
        progress.record("a.b", kind, points, out_of)


def test_two_notebooks_do_not_lose_each_others_scores(progress):
    other = Progress(progress.path)
    progress.record("a.x", "recap", 1, 5)
    other.record("b.x", "recap", 2, 5)
    progress.record("c.x", "recap", 3, 5)
    assert sorted(other.entries()) == ["a.x", "b.x", "c.x"]


def test_export_and_import_merge_keeping_the_better(progress, tmp_path):
    progress.record("a.x", "recap", 4, 5)
    progress.record("b.x", "recap", 1, 5)
    away = Progress(tmp_path / "away.json")
    away.record("b.x", "recap", 3, 5)
    away.record("c.x", "recap", 2, 5)
    assert progress.import_(away.export()) == 2
    best = {key: entry.best for key, entry in progress.entries().items()}
    assert best == {"a.x": 4, "b.x": 3, "c.x": 2}
    assert json.loads(progress.export())["version"] == 1
    with pytest.raises(ValueError, match="not a file of scores"):
        progress.import_("scores")


def test_the_dashboard_shows_refreshes_exports_and_imports(progress, tmp_path):
    board = dashboard(progress)
    assert isinstance(board, Dashboard)
    assert "Nothing scored yet" in board.table.value
    progress.record("45a.flip", "predict", 4, 6)
    board.refresh_button.click()
    assert "4 of 6" in board.table.value
    assert "<caption>" in board.table.value
    assert 'download="minserve-progress.json"' in board.export_link.value
    away = Progress(tmp_path / "away.json")
    away.record("00.recap", "recap", 5, 5)
    board._uploaded({"new": ({"content": memoryview(away.export().encode())},)})
    assert "Imported 1" in board.message.value
    assert "5 of 5" in board.table.value
    board._uploaded({"new": ({"content": memoryview(b"junk")},)})
    assert "Nothing was imported" in board.message.value
    assert board._repr_mimebundle_()["text/plain"].startswith("Dashboard: 2 scored panels")


def test_headless_the_dashboard_says_nothing_about_anybodys_scores(progress, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    progress.record("45a.flip", "predict", 4, 6)
    assert "4" not in str(dashboard(progress)._repr_mimebundle_())


def test_the_file_is_in_work_unless_named_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("MINSERVE_PROGRESS", raising=False)
    assert default_path().parts[-2:] == ("work", "progress.json")
    monkeypatch.setenv("MINSERVE_PROGRESS", os.fspath(tmp_path / "x.json"))
    assert Progress().path == tmp_path / "x.json"
