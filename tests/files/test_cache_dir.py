"""A cache that is damaged, open to others or not there costs a sentence and a repetition."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.files import cache_dir
from minserve.files.cache_dir import CacheWarning, UnsafeError


@pytest.fixture(autouse=True)
def every_sentence() -> Iterator[None]:
    cache_dir.say_once.cache_clear()
    yield
    cache_dir.say_once.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MINSERVE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_dir.cache_directory()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def number(data: Any) -> float:
    return float(data["value"])


def test_a_value_comes_back_from_a_directory_of_this_user_alone(folder: Path) -> None:
    path = folder / "a.json"
    assert cache_dir.read(path, number, "a number") is None
    assert cache_dir.write(path, {"value": 1.5}, "a number")
    assert cache_dir.read(path, number, "a number") == 1.5
    assert (mode(folder), mode(path)) == (0o700, 0o600)
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as a number"),
        (b"\xff\x00", "is not UTF-8"),
        (b"[" * 100_000, "levels deep"),
        (b'{"value": NaN}', "NaN"),
        (b"[]", "cannot be used"),
        (b"{}", "cannot be used"),
        (b" " * (2 << 20), "bytes"),
        (None, "not a regular file"),
    ],
    ids=["empty", "binary", "nested", "NaN", "a list", "no field", "huge", "a directory"],
)
def test_a_damaged_file_is_one_sentence_and_is_replaced(
    folder: Path, content: bytes | None, sentence: str
) -> None:
    path = folder / "a.json"
    folder.mkdir(parents=True)
    if content is None:
        (path / "inside").mkdir(parents=True)
    else:
        path.touch(0o600)
        path.write_bytes(content)
    with pytest.warns(CacheWarning, match=sentence) as seen:
        for _ in range(3):
            assert cache_dir.read(path, number, "a number") is None
    assert len(seen) == 1 and str(folder) not in str(seen[0].message)
    assert cache_dir.write(path, {"value": 2}, "a number")
    assert cache_dir.read(path, number, "a number") == 2


def test_what_others_could_have_written_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.json"
    cache_dir.write(path, {"value": 1}, "a number")
    path.chmod(0o666)
    with pytest.warns(CacheWarning, match="other users can write to a.json"):
        assert cache_dir.read(path, number, "a number") is None
    path.unlink()
    path.symlink_to(folder / "b.json")
    cache_dir.write(folder / "b.json", {"value": 1}, "a number")
    with pytest.warns(CacheWarning, match="a.json is not a regular file"):
        assert cache_dir.read(path, number, "a number") is None
    as_another_user(monkeypatch)
    with pytest.warns(CacheWarning, match="belongs to another user"):
        assert cache_dir.read(folder / "b.json", number, "a number") is None


def as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are then a stranger's: tests may run as root, whose files anyone may trust."""
    real_stat, real_lstat = os.stat, os.lstat

    def owned(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> os.stat_result:
            found = list(real(*args, **kwargs))
            found[stat.ST_UID] = 4321
            return os.stat_result(found)

        return call

    monkeypatch.setattr(os, "stat", owned(real_stat))
    monkeypatch.setattr(os, "lstat", owned(real_lstat))


def test_a_directory_open_to_others_is_refused_and_the_users_own_is_closed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    cache_dir.secure(folder)
    assert mode(folder) == 0o700
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    chosen.chmod(0o1777)
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(chosen))
    with pytest.raises(UnsafeError, match=r"other users can write to .*chmod 700"):
        cache_dir.secure(cache_dir.cache_directory())
    assert mode(chosen) == 0o1777
    with pytest.warns(CacheWarning, match="a number cannot be kept for the next time"):
        assert not cache_dir.write(chosen / "a.json", {"value": 1}, "a number")
    assert not any(chosen.iterdir())


def test_a_link_to_an_open_directory_is_refused_and_left_as_it_is(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    folder.symlink_to(target)
    with pytest.raises(UnsafeError, match="other users can write"):
        cache_dir.secure(folder)
    assert mode(target) == 0o777


def test_another_users_directory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    as_another_user(monkeypatch)
    with pytest.raises(UnsafeError, match="belongs to another user"):
        cache_dir.secure(folder)


@pytest.mark.parametrize("name", ["mkdir", "replace", "fsync", "open", "stat"])
def test_a_disk_that_fails_costs_the_repetition_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    if name != "mkdir":
        cache_dir.write(folder / "b.json", {"value": 1}, "a number")
    with monkeypatch.context() as patch, pytest.warns(CacheWarning):
        patch.setattr(os, name, fail)
        if name in ("open", "stat"):
            assert cache_dir.read(folder / "b.json", number, "a number") is None
        else:
            assert not cache_dir.write(folder / "a.json", {"value": 1}, "a number")
    assert {path.name for path in folder.glob("*")} <= {"b.json"}


def test_a_user_without_a_home_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINSERVE_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_dir.cache_directory().name.startswith("minserve-")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**39, -1, 0, 1e308, -1e-300])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, derandomize=True)
@pytest.mark.filterwarnings("ignore::minserve.files.cache_dir.CacheWarning")
def test_no_content_at_all_is_an_exception(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("cache") / "a.json"
    path.touch(0o600)
    path.write_bytes(content)
    found = cache_dir.read(path, number, "a number")
    assert found is None or isinstance(found, float)
