"""A part's file is whole at every moment, names every denominator, and tells nobody's paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minserve.bench.gpu.record import Record, frame, load, may_stay, share, without_paths

CPU = torch.device("cpu")


def fresh(**changed: object) -> dict[str, object]:
    return frame("kernels", {"limit_s": 1.0}, CPU, "abc", True) | changed


def test_a_percentage_says_of_what() -> None:
    found = share(3.0, 4.0, "copy bandwidth", "bytes/s")
    assert found == {"share": 0.75, "of": "copy bandwidth", "denominator": 4.0, "unit": "bytes/s"}
    for denominator, of in ((0.0, "a limit"), (1.0, "")):
        with pytest.raises(ValueError, match="expected a named limit"):
            share(1.0, denominator, of, "s")


def test_every_row_is_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kernels.json"
    record = Record(path, fresh())
    for count in range(1, 4):
        record.add({"name": count})
        data = load(path)
        assert data is not None
        assert data["status"] == "running" and len(data["rows"]) == count
    record.finish(2.0, "RuntimeError: no")
    assert json.loads(path.read_text())["error"] == "RuntimeError: no"
    assert list(path.parent.iterdir()) == [path]


def test_only_a_complete_file_of_the_same_code_card_and_settings_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    record = Record(path, fresh())
    record.save()
    assert not may_stay(load(path), fresh()), "it was not finished"
    record.finish(1.0)
    assert may_stay(load(path), fresh())
    assert may_stay(load(path), fresh(date="another day"))
    for name, value in {
        "commit": "def",
        "device": {"name": "another card"},
        "versions": {"torch": "0"},
        "settings": {"limit_s": 2.0},
        "dry_run": False,
    }.items():
        assert not may_stay(load(path), fresh(**{name: value})), name
    record.finish(1.0, "an error")
    assert not may_stay(load(path), fresh()), "it failed"


@pytest.mark.parametrize("text", ["{", "[1]", '{"schema": "other"}', ""])
def test_what_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    assert load(path) is None
    path.write_text(text)
    assert load(path) is None


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("File /home/me/env/lib/python3.12/torch/x.py, line 3", "File x.py, line 3"),
        ("cannot open '/srv/a-b/model.safetensors'", "cannot open 'model.safetensors'"),
        ("62 tokens/s, read and/or written", "62 tokens/s, read and/or written"),
        ("labs/recorded/gpu", "labs/recorded/gpu"),
    ],
)
def test_errors_keep_the_name_of_a_file_and_lose_where_it_lies(text: str, clean: str) -> None:
    assert without_paths(text) == clean


def test_paths_are_gone_from_everything_that_is_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.json", fresh())
    record.add({"sides_lost": {"flex": "No module at /opt/conda/lib/triton.so"}})
    record.note("see /srv/x/y.txt")
    record.finish(0.0, "OSError: /a/b/c")
    assert tmp_path.joinpath("x.json").read_text().count("/") == 0
