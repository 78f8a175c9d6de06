"""Where the reader's copies lie: chosen, in the checkout, or at home where that is read-only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.read_only import read_only
from widgets.notebooks import checkout as finder
from widgets.panels.exercises.exercise import load_module

ROOT = Path(__file__).resolve().parent.parent
START = "00_start_here.ipynb"


open_lab = load_module(ROOT / "labs" / "open_lab.py")


def notebook(source: str) -> str:
    cell = {"cell_type": "code", "id": "one", "source": [source], "metadata": {}}
    cells = [cell | {"execution_count": None, "outputs": []}]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name in ("MINSERVE_WORK", "MINSERVE_PROGRESS", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def checkout(tmp_path: Path, home: Path) -> Path:
    labs = tmp_path / "clone" / "labs"
    for name in ("questions", "exercises", "figures"):
        (labs / name).mkdir(parents=True)
    (labs / "figures" / "00.svg").write_text("<svg/>")
    for name in (START, "11_speculative.ipynb"):
        (labs / name).write_text(notebook("1 + 1"))
    return tmp_path / "clone"


Run = Callable[..., str]


@pytest.fixture
def run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str, code: int = 0) -> str:
        assert open_lab.main(["--copy-only", *words], checkout=checkout) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return call


@pytest.fixture
def closed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that answers as a read-only file system does, for root too."""
    real = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        inside = Path(path).absolute().is_relative_to(checkout)
        return not (inside and mode & os.W_OK) and real(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    return checkout


@pytest.mark.parametrize("way", ["option", "environment"])
def test_copies_lie_where_the_reader_wants_them(
    checkout: Path, run: Run, tmp_path: Path, monkeypatch, way: str
):
    chosen = tmp_path / "my disk" / "llm"
    if way == "environment":
        monkeypatch.setenv("MINSERVE_WORK", str(chosen))
    said = run(*(["--work", str(chosen)] if way == "option" else []))
    assert f"{chosen}/work/{START}: your copy" in said
    assert json.loads((chosen / "work" / START).read_text())["cells"][0]["source"] == ["1 + 1"]
    assert not (checkout / "work").exists()
    # Links to figures, and the chapters' files, are found from there.
    assert (chosen / "work" / "../labs/figures/00.svg").is_file()
    monkeypatch.chdir(chosen / "work")
    assert finder.labs_directory() == chosen / "labs"


def test_a_home_directory_may_be_written_as_a_tilde(home: Path, run: Run):
    run("--work", "~/llm")
    assert (home / "llm" / "work" / START).exists()


def test_reset_and_updates_name_that_place(checkout: Path, run: Run, tmp_path: Path):
    chosen = tmp_path / "llm"
    run("--work", str(chosen))
    mine = chosen / "work" / "11_speculative.ipynb"
    mine.write_text(notebook("my notes"))
    (checkout / "labs/11_speculative.ipynb").write_text(notebook("2 + 2"))
    assert f"make reset CHAPTER=11 WORK={chosen}" in run("--work", str(chosen))
    said = run("--work", str(chosen), "--reset", "11")
    assert f"the one you had is in {chosen}/work/backups/" in said
    (kept,) = (chosen / "work/backups").iterdir()
    assert "my notes" in kept.read_text() and "2 + 2" in mine.read_text()


def test_jupyter_opens_there_and_scores_are_kept_there(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[tuple[list[str], str]] = []
    chosen = tmp_path / "llm"

    def call(command: list[str], env: dict[str, str]) -> int:
        started.append((command, env["MINSERVE_PROGRESS"]))
        return 0

    monkeypatch.setattr(os, "name", "other")
    monkeypatch.setattr(open_lab.subprocess, "call", call)
    # What paths are made of looks at the name too.
    places = open_lab.find_place(checkout, str(chosen))
    monkeypatch.setattr(open_lab, "find_place", lambda *given: places)
    open_lab.main([], checkout=checkout)
    monkeypatch.setenv("MINSERVE_PROGRESS", "/my/scores.json")
    open_lab.main([], checkout=checkout)
    (command, scores), (_, own) = started
    assert f"--ServerApp.root_dir={chosen}" in command
    assert f"--LabApp.default_url=/lab/tree/work/{START}" in command
    assert scores == str(chosen / "work/progress.json") and own == "/my/scores.json"


def test_a_read_only_checkout_sends_the_copies_home_and_says_so(closed: Path, home: Path, run: Run):
    said = run()
    work = home / "minserve-lab" / "work"
    first, *rest = said.splitlines()
    assert str(closed / "work") in first and str(work) in first and "make lab WORK=" in first
    assert f"{work}/{START}: your copy of the chapter" in rest
    assert not (closed / "work").exists()
    mine = work / "11_speculative.ipynb"
    mine.write_text(notebook("my notes"))
    run()
    assert "my notes" in mine.read_text()
    run("--reset", "11")
    (kept,) = (work / "backups").iterdir()
    assert "my notes" in kept.read_text()


def test_what_the_reader_had_in_it_comes_along_and_stays(
    checkout: Path, home: Path, run: Run, request: pytest.FixtureRequest
):
    run()
    own = checkout / "work"
    (own / START).write_text(notebook("my notes"))
    (own / "progress.json").write_text('{"version": 2, "entries": [], "commits": []}')
    (own / "backups").mkdir()
    (own / "backups" / "old.ipynb").write_text(notebook("older notes"))
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    request.getfixturevalue("closed")
    said = run()
    work = home / "minserve-lab" / "work"
    assert f"{work / START}: copied from {own}" in said
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before
    assert {path.relative_to(work) for path in work.rglob("*") if path.is_file()} == {
        path.relative_to(own) for path in before
    }
    (work / START).write_text(notebook("newer notes"))
    assert "copied from" not in run() and "newer notes" in (work / START).read_text()
    # A copy that was never opened still follows the chapter.
    (checkout / "labs/11_speculative.ipynb").write_text(notebook("2 + 2"))
    assert "updated" in run() and "2 + 2" in (work / "11_speculative.ipynb").read_text()


def test_copies_of_somebody_else_do_not_come_along(
    checkout: Path, home: Path, run: Run, request: pytest.FixtureRequest, monkeypatch
):
    run()
    (checkout / "work" / START).write_text(notebook("the teacher's answers"))
    request.getfixturevalue("closed")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    run()
    assert "answers" not in (home / "minserve-lab" / "work" / START).read_text()


def test_a_checkout_that_can_be_written_again_says_where_other_copies_are(
    checkout: Path, home: Path, run: Run
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_lab, "is_writable", lambda folder: False)
        run()
    said = run()
    assert f"make lab WORK={home / 'minserve-lab'}" in said
    assert (checkout / "work" / START).exists()


def test_a_link_to_a_checkout_that_moved_is_set_anew(checkout: Path, run: Run, tmp_path: Path):
    chosen = tmp_path / "llm"
    chosen.mkdir()
    (chosen / "labs").symlink_to(tmp_path / "gone" / "labs")
    run("--work", str(chosen))
    assert (chosen / "labs").resolve() == checkout / "labs"
    shutil.rmtree(chosen)
    (chosen / "labs").mkdir(parents=True)
    (chosen / "labs" / "mine.txt").write_text("mine")
    run("--work", str(chosen))
    assert (chosen / "labs" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "make lab WORK="), (errno.EACCES, "make lab WORK="), (errno.ENOSPC, "No space")],
)
def test_what_cannot_be_written_is_said_and_nothing_is_lost(
    checkout: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: int, words: str
):
    run()
    mine = checkout / "work" / "11_speculative.ipynb"
    mine.write_text(notebook("my notes"))

    def refuse(path: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    said = run("--reset", "11", code=1)
    assert "cannot be written" in said and words in said and len(said.splitlines()) == 1
    assert "my notes" in mine.read_text()


def test_a_place_that_cannot_be_made_is_said(run: Run, tmp_path: Path):
    (tmp_path / "file").write_text("")
    said = run("--work", str(tmp_path / "file" / "llm"), code=1)
    assert str(tmp_path / "file") in said and "cannot be written" in said


def test_on_a_read_only_file_system_all_that_still_works(checkout: Path, home: Path):
    """The system itself refuses here."""
    words = [sys.executable, str(checkout / "labs/open_lab.py"), "--copy-only"]
    shutil.copy(ROOT / "labs/open_lab.py", checkout / "labs")
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    with read_only(checkout) as before:
        for reset in ([], ["--reset", "11"]):
            command = [*before, *words, *reset]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    work = home / "minserve-lab" / "work"
    assert f"{work}/11_speculative.ipynb: fresh" in done.stdout
    assert len(list((work / "backups").iterdir())) == 1 and not (checkout / "work").exists()


def test_make_hands_the_place_on():
    for target, words in (("lab", "open_lab.py --work '/my disk'"), ("reset", "--work '/my disk'")):
        command = ["make", "-n", target, "WORK=/my disk", "CHAPTER=00"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert words in said
