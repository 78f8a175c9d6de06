"""The compiled library is loaded as it was built, or built again: never as something left it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minserve.files import cache_dir
from minserve.files.cache_dir import CacheWarning
from minserve.kernels import why_not_native
from minserve.kernels.cpu import build
from minserve.kernels.cpu.build import NativeUnavailable, library_path

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))

LOAD = "from minserve.kernels import why_not_native; print(why_not_native())"


class Compiler:
    """A compiler that copies the library of this machine, and counts."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.library = library
        self.count = folder / "count"
        self.path = folder / "c++"
        self.path.write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --version ]; then echo copies; exit; fi\n'
            "for last; do :; done\n"
            f'echo built >> {self.count}; cat {library} > "$last"\n'
        )
        self.path.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self.count.read_text().splitlines()) if self.count.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    made = Compiler(tmp_path, library_path())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(made.path))
    for cached in (cache_dir.say_once, build._process_directory):
        cached.cache_clear()
    yield made
    for cached in (cache_dir.say_once, build._process_directory):
        cached.cache_clear()


def load() -> str:
    """What a fresh process says that loads the library; it may be killed by doing so."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


def test_the_second_process_builds_nothing(compiler: Compiler, tmp_path: Path) -> None:
    library = library_path()
    assert library_path() == library and compiler.runs == 1
    assert library.read_bytes() == compiler.library.read_bytes()
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


def test_every_source_is_in_the_digest() -> None:
    """A file that is included and not listed could change without a new library."""
    room = Path(build.__file__).parent
    files = [*room.rglob("*.h"), *room.rglob("*.cpp")]
    assert sorted(build.SOURCES) == sorted(path.relative_to(room).as_posix() for path in files)
    assert build.SOURCES[-1].endswith(".cpp")
    included = set()
    for path in files:
        for line in path.read_text().splitlines():
            if line.startswith('#include "'):
                found = path.parent / line.split('"')[1]
                included.add(found.resolve().relative_to(room.resolve()).as_posix())
    assert included == set(build.SOURCES[:-1])


def truncated(library: Path) -> None:
    os.truncate(library, 5000)


def emptied(library: Path) -> None:
    os.truncate(library, 0)


def changed(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def other_file(library: Path) -> None:
    library.write_text("#!/bin/sh\n")


def a_directory(library: Path) -> None:
    library.unlink()
    (library / "inside").mkdir(parents=True)


def a_link(library: Path) -> None:
    moved = library.rename(library.with_name("moved"))
    library.symlink_to(moved)


def writable(library: Path) -> None:
    library.chmod(0o777)


def other_digest(library: Path) -> None:
    beside = library.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"sha256": "0" * 64}))


def no_json(library: Path) -> None:
    library.with_suffix(".json").write_bytes(b"\xff{")


def digest_is_a_directory(library: Path) -> None:
    library.with_suffix(".json").unlink()
    library.with_suffix(".json").mkdir()


DAMAGE = [
    truncated, emptied, changed, other_file, a_directory, a_link, writable, other_digest, no_json,
    digest_is_a_directory,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_a_library_that_is_not_what_was_built_is_built_again(compiler: Compiler, damage) -> None:
    library = library_path()
    damage(library)
    with pytest.warns(CacheWarning, match="again"):
        assert library_path() == library
    assert compiler.runs == 2 and library.read_bytes() == compiler.library.read_bytes()
    assert not library.is_symlink()
    library_path()
    assert compiler.runs == 2


def test_a_library_without_its_digest_is_built_again(compiler: Compiler) -> None:
    """An earlier version left none."""
    library_path().with_suffix(".json").unlink()
    library_path()
    assert compiler.runs == 2


def test_a_truncated_library_does_not_end_the_process(compiler: Compiler) -> None:
    """The system ends it with SIGBUS where code is missing that the file promised."""
    truncated(library_path())
    assert load() == "None"
    assert compiler.runs == 2


def test_another_users_library_in_a_cache_open_to_all_is_not_loaded(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_path()
    folder, own = library.parent, os.lstat
    folder.chmod(0o777)
    foreign = library.stat().st_ino

    def lstat(path: Any, **options: Any) -> os.stat_result:
        found = own(path, **options)
        if found.st_ino != foreign:
            return found
        values = list(found)
        values[stat.ST_UID] = 4321
        return os.stat_result(values)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.warns(CacheWarning, match="belongs to another user. They are built again"):
        assert library_path() == library
    assert compiler.runs == 2 and library.stat().st_ino != foreign
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("reason", ["another user's", "a file", "a full disk"])
def test_a_cache_that_cannot_be_used_costs_a_build_per_process(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    folder = cache_dir.user_cache_directory()
    if reason == "a file":
        folder.parent.mkdir()
        folder.touch()
    else:

        def fail(directory: Path) -> None:
            raise OSError(28, "No space left on device")

        refused = cache_dir.UnsafeError(f"{folder} belongs to another user")
        monkeypatch.setattr(
            cache_dir, "secure",
            fail if reason == "a full disk" else lambda path: _refuse(path, folder, refused),
        )  # fmt: skip
    if reason == "a full disk":
        # Nothing can be written anywhere: then, and only then, the operators are torch's.
        with (
            pytest.warns(CacheWarning, match="No space left"),
            pytest.raises(NativeUnavailable, match="digest cannot be written"),
        ):
            library_path()
        return
    with pytest.warns(CacheWarning, match="built for this process alone"):
        library = library_path()
    assert folder not in library.parents and library_path() == library
    assert compiler.runs == 1 and stat.S_IMODE(library.parent.stat().st_mode) == 0o700


def _refuse(path: Path, folder: Path, error: OSError) -> None:
    if path == folder:
        raise error


def test_a_build_that_nobody_finishes_is_not_waited_for(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_LOCK_TIMEOUT_S", 0.1)
    folder = cache_dir.user_cache_directory()
    cache_dir.secure(folder)
    with (
        build.FileLock(folder / "build.lock"),
        pytest.warns(CacheWarning, match="built for this process alone"),
    ):
        assert folder not in library_path().parents
