"""Building and recording from the command line: what goes wrong is said, and nothing is lost."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest

from book import __main__ as command
from book import build, record, records


@pytest.fixture
def without_sphinx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that stops before Sphinx writes a site of one page."""

    def sphinx(source: Path, made: Path) -> None:
        shutil.copytree(source / "static", made / "_static")
        (made / "index.html").write_text("new", encoding="utf-8")

    monkeypatch.setattr(build, "_run_sphinx", sphinx)


@pytest.mark.usefixtures("without_sphinx")
def test_an_earlier_site_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    site = tmp_path / "new" / "site"
    for _ in range(2):
        build.build(site)
        assert (site / "index.html").read_text(encoding="utf-8") == "new"
        assert [each.name for each in site.parent.iterdir()] == ["site"]
        (site / "old.html").write_text("of a chapter that is gone", encoding="utf-8")
    assert build.build(site) == [] and not (site / "old.html").exists()


@pytest.mark.usefixtures("without_sphinx")
def test_a_directory_with_anything_else_in_it_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.md").write_text("years of work", encoding="utf-8")
    for out in (tmp_path, tmp_path / "thesis.md"):
        assert command.main(["--out", str(out)]) == 1
        assert "name a new or an empty directory" in capsys.readouterr().err
    assert (tmp_path / "thesis.md").read_text(encoding="utf-8") == "years of work"


def test_an_earlier_site_stays_where_sphinx_complains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complain(source: Path, made: Path) -> None:
        raise build.BookError("Sphinx has complained: see above")

    monkeypatch.setattr(build, "_run_sphinx", complain)
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "book.js").touch()
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "Sphinx has complained" in capsys.readouterr().err
    assert (tmp_path / "_static" / "book.js").exists()


@pytest.mark.usefixtures("without_sphinx")
def test_a_place_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command.main(["--out", str(tmp_path / "file" / "site")]) == 1
    assert "The book was not built" in capsys.readouterr().err


@pytest.mark.usefixtures("without_sphinx")
def test_a_missing_record_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = records.load
    monkeypatch.setattr(records, "load", lambda chapter: load(chapter, tmp_path))
    assert command.main(["--out", str(tmp_path / "site")]) == 1
    assert "has not been recorded" in capsys.readouterr().err


def test_a_build_without_sphinx_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def none(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("sphinx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(build.BookError, match="`make book` installs it"):
        build.build(tmp_path / "site")


def test_a_site_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_sphinx: None
) -> None:
    monkeypatch.setattr(build, "MOST_BYTES", 4_000_000)  # less than plotly's script
    with pytest.raises(build.BookError, match=r"4\.\d MB, expected at most 4"):
        build.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_chapter_of_older_code_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.write_pages(tmp_path / "first") == []
    monkeypatch.setattr(records, "digest", lambda notebook: "another")
    notes = build.write_pages(tmp_path / "second")
    assert len(notes) == len(records.chapters())
    assert "00_start_here.ipynb: its code has changed since" in notes[0]
    assert notes[0].endswith("book.record 00")


@pytest.mark.parametrize("name", ["99", "4", "start", "45", ""])
def test_recording_an_unknown_chapter_names_those_there_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        record.main([name])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"no chapter {name!r}" in said and "45b_chunked_prefill" in said


@pytest.mark.parametrize("name", ["45b", "45b_chunked_prefill", "labs/45b_chunked_prefill.ipynb"])
def test_a_chapter_is_recorded_by_its_number_name_or_path(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(path: Path) -> Any:
        ran.append(path.stem)
        raise record.DeadKernelError("Kernel died")

    monkeypatch.setattr(record, "record", run)
    assert record.main([name]) == 1 and ran == ["45b_chunked_prefill"]
    assert "not recorded\nKernel died" in capsys.readouterr().err
