"""The chapters' files are found wherever a chapter is opened, or a sentence says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from widgets.notebooks import checkout
from widgets.notebooks.checkout import FOLDERS, checkout_directory, labs_directory
from widgets.scoring.progress import default_path

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.name for path in (ROOT / "labs").glob("[0-9]*.ipynb"))
MOST_BYTES = 16_000_000
"""Of the wheel: the models that ship are 13.5 MB of it, the chapters' files 0.2 MB."""


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("MINSERVE_PROGRESS", raising=False)


def made(folder: Path, *names: str) -> Path:
    for name in names or FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as a wheel installs it: no checkout around it, and nothing else in sight."""
    package = tmp_path / "site-packages" / "widgets"
    made(package / "labs")
    monkeypatch.setattr(checkout, "_PACKAGE", package)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return package


def test_a_checkout_is_found_from_any_folder_in_it(installed: Path, tmp_path, monkeypatch):
    root = tmp_path / "clone"
    made(root / "labs")
    for folder in (root, root / "labs", root / "work" / "backups"):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        assert labs_directory() == root / "labs"
        assert default_path() == root / "work" / "progress.json"


def test_the_notebooks_folder_counts_where_the_current_one_is_elsewhere(
    installed: Path, tmp_path, monkeypatch
):
    made(tmp_path / "clone" / "labs")
    session = tmp_path / "clone" / "work" / "45a_continuous_batching.ipynb"
    monkeypatch.setenv("JPY_SESSION_NAME", str(session))
    assert labs_directory() == tmp_path / "clone" / "labs"


@pytest.mark.parametrize("session", ["", "no-path", "45a.ipynb"])
def test_outside_a_checkout_the_installed_files_are_taken(installed: Path, monkeypatch, session):
    monkeypatch.setenv("JPY_SESSION_NAME", session)
    assert labs_directory() == installed / "labs"
    assert checkout_directory() is None
    assert default_path() == Path.cwd() / "work" / "progress.json"


def test_a_labs_folder_of_something_else_is_not_taken_for_ours(installed: Path, tmp_path):
    made(tmp_path / "labs", "questions")
    assert labs_directory() == installed / "labs"


def test_a_current_folder_that_is_gone_is_no_reason_to_fail(installed: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(made(tmp_path / "gone", "inside"))
    shutil.rmtree(tmp_path / "gone")
    assert labs_directory() == installed / "labs"


def test_where_there_is_nothing_a_sentence_says_what_to_do(installed: Path):
    shutil.rmtree(installed / "labs" / "recorded")
    with pytest.raises(FileNotFoundError, match=r"pip install \"\.\[lab\]\"") as raised:
        labs_directory()
    assert str(Path.cwd()) in str(raised.value) and str(installed / "labs") in str(raised.value)


def test_panels_of_a_checkout_find_its_files_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert labs_directory() == ROOT / "labs"


# The wheel itself ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (packed,) = folder.glob("minserve-*.whl")
    assert packed.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def outside(wheel: Path, folder: Path, *command: str) -> str:
    """What `command` prints in `folder`, where the wheel is all there is of minserve."""
    folder.mkdir(exist_ok=True)
    mine = {name: text for name, text in os.environ.items() if not name.startswith("MINSERVE_")}
    environment = mine | {
        "PYTHONPATH": str(wheel), "MINSERVE_HEADLESS": "1", "HF_HUB_OFFLINE": "1",
        "MINSERVE_PROGRESS": str(folder / "progress.json"),
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ASK_ALL = """
import widgets
from widgets.notebooks.checkout import labs_directory
from widgets.panels.exercises.exercise import load_exercise, load_solution
from widgets.scoring.questions import load

labs = labs_directory()
assert labs.parent.samefile(widgets.__path__[0]), labs
for path in sorted(labs.glob("exercises/[0-9]*.py")):
    load_solution(path.stem, load_exercise(path.stem))
for path in labs.glob("questions/*.toml"):
    load(path.stem)
print(sorted(str(path.relative_to(labs)) for path in labs.rglob("*.*") if path.suffix != ".pyc"))
"""


def test_the_wheel_brings_all_that_chapters_read(wheel: Path, tmp_path: Path):
    said = outside(wheel, tmp_path / "empty", sys.executable, "-B", "-c", ASK_ALL)
    labs = ROOT / "labs"
    ours = [
        path.relative_to(labs).as_posix()
        for name in FOLDERS
        for path in (labs / name).rglob("*.*")
        if path.suffix != ".pyc" and path.is_file()
    ]
    assert said.strip() == str(sorted(ours))


def test_the_doctor_looks_for_them(wheel: Path, tmp_path: Path):
    said = outside(wheel, tmp_path / "empty", sys.executable, "-m", "minserve", "lab", "doctor")
    assert f"chapters' files: {wheel / 'widgets' / 'labs'}" in said


@pytest.mark.full
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_alone_in_a_folder_runs_from_the_wheel(wheel: Path, tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    shutil.copy(ROOT / "labs" / name, tmp_path / "empty")
    command = ["-m", "nbconvert", "--execute", "--to", "notebook", "--output", "out.ipynb", name]
    outside(wheel, tmp_path / "empty", sys.executable, *command)


@pytest.mark.full
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_as_a_script(wheel: Path, tmp_path: Path, name: str):
    convert = ["-m", "nbconvert", "--to", "script", "--output-dir", str(tmp_path / "empty")]
    outside(wheel, tmp_path / "empty", sys.executable, *convert, str(ROOT / "labs" / name))
    # The Check panel looks for the reader's function in IPython.
    outside(wheel, tmp_path / "empty", sys.executable, "-m", "IPython", f"{Path(name).stem}.py")


def test_the_notebooks_checkout_goes_before_that_of_the_package(tmp_path, monkeypatch):
    made(tmp_path / "ours" / "labs")
    made(tmp_path / "theirs" / "labs")
    monkeypatch.setattr(checkout, "_PACKAGE", tmp_path / "ours" / "widgets")
    monkeypatch.chdir(tmp_path / "theirs")
    assert checkout_directory() == tmp_path / "theirs"
