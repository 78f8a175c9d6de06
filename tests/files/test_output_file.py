"""Files that a command writes: checked first, complete or untouched, errors with their name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minserve.files import cache_dir
from minserve.files.output_file import OutputError, check_writable, write_text


def test_a_check_leaves_no_file_and_changes_none(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    check_writable(tmp_path / "new.json", "--json")
    check_writable(kept, "--json")
    assert list(tmp_path.iterdir()) == [kept] and kept.read_text() == "before"


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path: Path, monkeypatch) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_dir.os, "fsync", full)
    with pytest.raises(OutputError) as told:
        write_text(kept, "after", "--json")
    assert str(told.value) == f"--json {kept} cannot be written: no space left on device"
    assert list(tmp_path.iterdir()) == [kept] and kept.read_text() == "before"


def test_what_is_written_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "new.json", "text\n", "--json")
    assert (tmp_path / "new.json").read_text() == "text\n"
    assert os.stat(tmp_path / "new.json").st_mode & 0o777 == 0o644
