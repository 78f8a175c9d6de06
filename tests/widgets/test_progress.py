"""Scores survive damage, two notebooks, and a move to another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widgets.scoring.progress import Dashboard, Progress, dashboard, default_path
from widgets.scoring.scores import Chosen, Commit


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
    assert {path.name for path in progress.path.parent.iterdir()} <= {
        "progress.json", "progress.json.lock",
    }  # fmt: skip


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
        '{"version": 2, "entries": [], "commits": [{"key": "a"}]}',
        '{"version": 2, "entries": [], "commits": [{"key": "a", "asked": "b", "chosen":'
        ' [{"direction": "sideways", "number": null, "option": null}], "shown": false,'
        ' "scored": false}]}',
        '{"version": 2, "entries": [], "commits": [{"key": "a", "asked": "b", "chosen":'
        ' [{"direction": null, "number": -1.0, "option": null}], "shown": false,'
        ' "scored": false}]}',
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
    assert json.loads(progress.export())["version"] == 2
    with pytest.raises(ValueError, match="not a file of scores"):
        progress.import_("scores")


def test_of_two_equal_scores_the_one_with_more_tries_is_kept(progress, tmp_path):
    other = Progress(tmp_path / "other.json")
    for each, tries in ((progress, 1), (other, 3)):
        for _ in range(tries):
            each.record("45a.flip", "predict", 2, 3)
    progress.import_(other.export())
    assert progress.entries()["45a.flip"].tries == 3


def test_commits_are_kept_beside_the_scores_and_forgotten_by_panel_or_chapter(progress):
    chosen = (Chosen("up", 2.0, 1), Chosen())
    commits = [Commit(key, "mark", chosen) for key in ("45b.flip", "45b.ridge", "45a.flip")]
    for commit in commits:
        progress.keep(commit)
    progress.record("45b.flip", "predict", 2, 6)
    other = Progress(progress.path)
    assert other.commit_of("45b.flip", "mark") == commits[0]
    assert other.commit_of("45b.flip", "other questions") is None
    assert other.commit_of("45b.recap", "mark") is None
    other.forget("45b.ridge")
    assert sorted(progress.scores().commits) == ["45a.flip", "45b.flip"]
    progress.forget("45b")
    assert list(other.scores().commits) == ["45a.flip"]
    assert list(other.entries()) == ["45b.flip"], "scores stay"


def test_the_first_version_of_the_file_is_read(progress):
    progress.path.parent.mkdir()
    entry = {"key": "00.recap", "kind": "recap", "first": 4.0, "best": 5.0, "out_of": 5.0,
             "tries": 2, "date": "2026-01-02"}  # fmt: skip
    progress.path.write_text(json.dumps({"version": 1, "entries": [entry]}), encoding="utf-8")
    assert progress.entries()["00.recap"].best == 5
    progress.keep(Commit("00.recap", "mark", (), shown=True))
    found = Progress(progress.path).scores()
    assert list(found.entries) == ["00.recap"] and found.commits["00.recap"].shown


def test_imported_commits_do_not_replace_ones_own(progress, tmp_path):
    away = Progress(tmp_path / "away.json")
    for key in ("a.x", "b.x"):
        away.keep(Commit(key, "theirs", (Chosen(number=3.0),)))
    progress.keep(Commit("a.x", "ours", (Chosen(number=2.0),)))
    progress.import_(away.export())
    commits = progress.scores().commits
    assert [commits[key].asked for key in ("a.x", "b.x")] == ["ours", "theirs"]


def test_the_dashboard_shows_refreshes_exports_and_imports(progress, tmp_path):
    board = dashboard(progress)
    assert isinstance(board, Dashboard)
    assert "Nothing scored yet" in board.table.value
    progress.record("45a.flip", "predict", 4, 6)
    assert "4 of 6" in board.table.value, "it follows what this kernel's panels record"
    Progress(tmp_path / "other.json").record("45a.flip", "predict", 5, 6)
    assert "5 of 6" not in board.table.value
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


ENTRY = {
    "key": "a.b", "kind": "recap", "first": 1, "best": 2, "out_of": 5, "tries": 2,
    "date": "2026-01-31",
}  # fmt: skip


@pytest.mark.parametrize("name", list(ENTRY))
@pytest.mark.parametrize(
    "junk", [None, True, [], {}, "", "x", -1, 0.5, 10**30, 1e308, "\x00", "x" * 300], ids=repr
)
def test_every_field_is_checked_when_scores_are_imported(progress, name, junk):
    """What is accepted can be read back, written and drawn; anything else is a sentence."""
    text = json.dumps({"version": 1, "entries": [ENTRY | {name: junk}]})
    try:
        assert progress.import_(text) == 1
    except ValueError as error:
        assert str(error).startswith("not a file of scores: ")
        assert not progress.path.exists()
        return
    (entry,) = Progress(progress.path).entries().values()
    assert isinstance(entry.key, str) and 0 < len(entry.key) <= 200
    assert 0 <= entry.first <= entry.best <= entry.out_of and entry.tries >= 1
    assert "of" in Dashboard(progress).table.value


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"version": NaN}', "\ud800", "9" * 5000, '{"version": 1}',
        '{"version": 1, "entries": [], "more": 1}', '{"version": 1, "entries": {}}',
        '{"version": true, "entries": []}', " " * (2 << 20),
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_file_of_scores_is_refused_in_a_sentence(progress, text):
    progress.record("a.x", "recap", 1, 5)
    with pytest.raises(ValueError, match="not a file of scores"):
        progress.import_(text)
    dashboard = Dashboard(progress)
    dashboard.import_text(text)
    assert "Nothing was imported" in dashboard.message.value
    assert list(progress.entries()) == ["a.x"]


@pytest.mark.parametrize(
    ("key", "points", "out_of"),
    [("", 1, 1), ("x" * 300, 1, 1), ("a\nb", 1, 1), ("a", 1, float("inf")), ("a", float("nan"), 1)],
)
def test_what_could_not_be_read_back_is_not_recorded(progress, key, points, out_of):
    with pytest.raises(ValueError):
        progress.record(key, "recap", points, out_of)
    assert not progress.path.exists()


def test_a_directory_in_the_place_of_the_file_is_set_aside(progress):
    (progress.path / "inside").mkdir(parents=True)
    progress.record("a.x", "recap", 1, 5)
    assert list(progress.entries()) == ["a.x"]
    (backup,) = progress.path.parent.glob("progress.damaged-*")
    assert (backup / "inside").is_dir() and backup.name in progress.notice


WRITER = """
import sys
from widgets.scoring.progress import Progress
progress = Progress(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    progress.record(f"{sys.argv[2]}.{number}", "recap", 1, 5)
assert not progress.notice, progress.notice
"""


def test_two_processes_lose_none_of_each_others_scores(progress):
    """138 of 200 were left without a lock."""
    words = [sys.executable, "-c", WRITER, str(progress.path)]
    writers = [
        subprocess.Popen([*words, name, "100"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert len(progress.entries()) == 200
    assert not list(progress.path.parent.glob("*.damaged-*"))


def test_threads_lose_none_of_each_others_scores(progress):
    def write(name: int) -> None:
        for number in range(10):
            Progress(progress.path).record(f"{name}.{number}", "recap", 1, 5)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(progress.entries()) == 40


def test_a_lock_that_is_never_given_back_is_a_sentence(progress, monkeypatch):
    monkeypatch.setattr("widgets.scoring.progress.LOCK_TIMEOUT_S", 0.1)
    progress.record("a.x", "recap", 1, 5)
    text = progress.export()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(progress.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    try:
        assert progress.record("b.x", "recap", 1, 5).best == 1
        assert "another notebook has held progress.json" in progress.notice
        assert list(progress.entries()) == ["a.x"]
        dashboard = Dashboard(progress)
        dashboard.import_text(text)
        assert "Nothing was imported: Scores cannot be kept" in dashboard.message.value
        progress.path.write_text("{")
        assert progress.entries() == {} and progress.path.exists()
    finally:
        holder.communicate(b"")
    progress.record("b.x", "recap", 1, 5)
    assert list(progress.entries()) == ["b.x"]


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1] + ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=60, derandomize=True)
def test_no_content_of_the_file_stops_a_chapter(tmp_path_factory, content):
    progress = Progress(tmp_path_factory.mktemp("work") / "progress.json")
    progress.path.write_bytes(content)
    progress.record("a.x", "recap", 1, 5)
    assert list(progress.entries()) == ["a.x"] and "begin anew" in progress.notice
    (backup,) = progress.path.parent.glob("*.damaged-*")
    assert backup.read_bytes() == content
