"""A disk that breaks costs pages, never a request; a process that dies leaves no pages behind."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.config import ConfigError
from minserve.memory import DiskTier, HostTier
from minserve.memory.assemble import _disk
from minserve.memory.tiers.disk import remove_dead

KEYS = [bytes([i]) * 32 for i in range(6)]
SIZE = 24
FILE = SIZE + 16
FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EISDIR, errno.ENOENT, errno.EACCES)


def page(key: bytes) -> bytes:
    return key[:1] * SIZE


class Faults:
    """Raises OSError at the n-th call of those the tier makes, and at every one after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number: int | None = None
        self.left = -1
        self._undo = monkeypatch
        for owner, name in (
            (builtins, "open"),
            (os, "open"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if self.number is not None:
                self.left -= 1
                if self.left < 0:
                    raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return call


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    names = st.sampled_from(["put", "put", "put", "get", "get", "clear"])
    return draw(st.lists(st.tuples(names, st.sampled_from(KEYS)), min_size=4, max_size=16))


@given(histories(), st.integers(0, 12), st.sampled_from(FAULTS), st.integers(1, 4))
@settings(max_examples=150, derandomize=True)
def test_no_fault_at_any_call_leaves_the_tier_as_an_exception(
    tmp_path_factory, history, calls, number, length
):
    disk = DiskTier(tmp_path_factory.mktemp("disk"), 3 * FILE)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        faults.number, faults.left = number, calls
        for action, key in history:
            if faults.left < -length:
                faults.number = None  # The disk works again.
            if action == "put":
                disk.put(key, page(key))
            elif action == "get":
                assert disk.get(key) in (None, page(key))
            else:
                disk.clear()
            assert disk.used_bytes == FILE * len(disk) <= 3 * FILE
            assert disk.failure is None or "no longer kept on disk" in disk.failure
        faults.number = None
        held = [key for key in KEYS if key in disk]
        assert [disk.get(key) for key in held] == [page(key) for key in held]
        faults.number, faults.left = number, 0
        disk.close()
    assert (len(disk), disk.used_bytes) == (0, 0)


def test_a_page_file_that_became_a_directory_is_a_miss_and_then_a_sentence(tmp_path):
    disk = DiskTier(tmp_path, 4 * FILE)
    for key in KEYS[:2]:
        disk.put(key, page(key))
    path = disk._path(KEYS[0])
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert disk.get(KEYS[0]) is None and disk.used_bytes == FILE
    assert disk.failure is not None and "deleting a page failed" in disk.failure
    assert disk.get(KEYS[1]) == page(KEYS[1])
    assert not disk.put(KEYS[2], page(KEYS[2]))
    disk.clear()
    assert disk.used_bytes == 0
    disk.close()
    assert not any(tmp_path.iterdir())


def test_a_directory_in_the_place_of_the_next_page_ends_the_tier(tmp_path):
    disk = DiskTier(tmp_path, 4 * FILE)
    disk._path(KEYS[0]).mkdir()
    assert not disk.put(KEYS[0], page(KEYS[0]))
    assert disk.failure is not None and "writing a page failed" in disk.failure


def test_a_folder_that_was_removed_is_a_miss_and_a_sentence(tmp_path):
    disk = DiskTier(tmp_path, 4 * FILE)
    disk.put(KEYS[0], page(KEYS[0]))
    shutil.rmtree(disk._folder)
    assert disk.get(KEYS[0]) is None and disk.used_bytes == 0
    assert not disk.put(KEYS[1], page(KEYS[1]))
    assert disk.failure is not None
    disk.close()


def test_pipes_links_and_grown_files_are_misses_and_read_at_once(tmp_path):
    disk = DiskTier(tmp_path, 4 * FILE)
    for key in KEYS[:3]:
        disk.put(key, page(key))
    pipe, link, grown = (disk._path(key) for key in KEYS[:3])
    pipe.unlink()
    os.mkfifo(pipe)
    kept = link.rename(tmp_path / "kept")
    link.symlink_to(kept)
    with open(grown, "ab") as file:
        file.truncate(1 << 40)
    assert [disk.get(key) for key in KEYS[:3]] == [None, None, None]
    assert disk.failure is None and kept.is_file()


def test_a_write_cut_short_is_never_read(tmp_path, monkeypatch):
    disk = DiskTier(tmp_path, 4 * FILE)
    real = builtins.open

    class Short:
        def __init__(self, *args, **kwargs):
            self.file = real(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self.file.close()

        def write(self, data):
            self.file.write(bytes(data)[:8])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", Short)
    assert not disk.put(KEYS[0], page(KEYS[0]))
    monkeypatch.undo()
    assert disk.get(KEYS[0]) is None and not disk._path(KEYS[0]).exists()
    assert disk.used_bytes == 0


def test_a_host_tier_whose_copies_fail_loses_no_slot(tmp_path):
    class Store:
        def __init__(self) -> None:
            self.broken = False
            self.slots = np.zeros(3, dtype=np.int64)

        def save(self, blocks, slots):
            self._try()

        def read_slot(self, slot):
            self._try()
            return memoryview(self.slots[slot].tobytes())

        def write_slot(self, slot, data):
            self._try()

        def _try(self):
            if self.broken:
                raise RuntimeError("the device is gone")

    store = Store()
    host = HostTier(3, store, DiskTier(tmp_path, 1 << 20))
    host.demote(KEYS[:5], [0, 1, 2, 3, 4])
    host.demote(KEYS[5:6], [5])
    on_disk = next(key for key in KEYS if host.find(key) == "disk")
    for full in (True, False):
        if not full:
            host._free.append(host._cached.popitem()[1])
        for action in (
            lambda: host.swap_out([0, 1]),
            lambda: host.demote([b"new" * 10], [0]),
            lambda: host.fetch([on_disk]),
        ):
            store.broken = True
            with pytest.raises(RuntimeError, match="gone"):
                action()
            store.broken = False
            host.check([])


CHILD = """
import os, sys
from minserve.memory.tiers.disk import DiskTier
disk = DiskTier(sys.argv[1], 1 << 20)
disk.put(b"key", b"page")
print("ready", flush=True)
sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    return child


def test_pages_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    living, killed = start(tmp_path), start(tmp_path)
    try:
        assert len(list(tmp_path.glob("minserve-kv-*/*"))) == 4  # A page and a lock each.
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        mine = DiskTier(tmp_path, 1 << 20)
        mine.put(KEYS[0], b"mine")
        remove_dead(tmp_path)
        assert len(list(tmp_path.glob("minserve-kv-*/" + b"key".hex()))) == 1
        assert mine.get(KEYS[0]) == b"mine"
        mine.close()
    finally:
        living.communicate(b"")
        killed.communicate()
    assert not any(tmp_path.iterdir())


def test_nothing_but_dead_tiers_is_removed(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / "data").mkdir(parents=True)
    (outside / "lock").touch()
    folder = tmp_path / "pages"
    for name in ("minserve-kv-no-lock", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "other" / "lock").touch()
    (folder / "minserve-kv-file").touch()
    (folder / "minserve-kv-link").symlink_to(outside)
    dead = folder / "minserve-kv-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "out").symlink_to(outside)
    before = {path.name for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)  # Another user's.
        remove_dead(folder)
    assert {path.name for path in folder.iterdir()} == before
    remove_dead(folder)
    assert {path.name for path in folder.iterdir()} == before - {"minserve-kv-dead"}
    assert (outside / "data").is_dir() and (outside / "lock").is_file()
    remove_dead(folder / "missing")


def test_a_copy_of_the_process_does_not_take_the_pages_with_it(tmp_path, monkeypatch):
    disk = DiskTier(tmp_path, 1 << 20)
    disk.put(KEYS[0], b"page")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        disk._delete()
    assert disk.get(KEYS[0]) == b"page"
    shutil.rmtree(disk._folder)


@pytest.mark.parametrize("place", ["a file", "a name no file can have"])
def test_a_place_that_cannot_be_is_an_error_of_the_system(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        DiskTier(tmp_path / "file" if place == "a file" else "a\0b", 1 << 20)


@pytest.mark.parametrize("name", ["file", "a\0b"])
def test_a_place_that_cannot_be_is_a_sentence_that_names_the_field(tmp_path, name):
    (tmp_path / "file").touch()
    memory = SimpleNamespace(disk_bytes=1 << 20, disk_path=str(tmp_path / name))
    config = SimpleNamespace(config=SimpleNamespace(memory=memory))
    with pytest.raises(ConfigError, match=r"memory.disk_path=.* cannot be written"):
        _disk(config)
