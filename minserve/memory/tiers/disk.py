"""The slowest tier: pages as files, each with a checksum.

A damaged or missing file is a miss, never a wrong answer. If the disk is full or broken, this tier
stops taking pages and reports a sentence; no request ends. The files are in their own directory,
which is deleted when the tier is closed or garbage-collected, or when the process ends. The files
of a killed process are deleted by the next tier in the same place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minserve.memory.keys import Key

_DIGEST_BYTES = 16
_PREFIX = "minserve-kv-"
_LOCK = "lock"
"""Locked while the tier is in use. The system frees the lock when its process ends for any reason;
a process id in a file could belong to a newer process."""
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags that make it an error to open a page file that has become a link or a pipe: then no other
file is ever read, and a read never blocks."""


class DiskTier:
    """Pages by key, at most `max_bytes` of them; the least recently used are deleted first.

    Only the constructor raises. Later, a failure is a miss, or a sentence in `failure`.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        """Raises OSError if `folder` cannot be created or written."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except ValueError as error:  # `folder` is not a possible file name.
            raise OSError(errno.EINVAL, str(error)) from None
        remove_dead(folder)
        self._folder, lock = _locked_folder(folder)
        self._delete = weakref.finalize(self, _remove_own, self._folder, lock, os.getpid())
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self.used_bytes = 0
        self.num_damaged = 0
        """Files that were missing or had a wrong checksum when they were read."""
        self.failure: str | None = None
        """A sentence: why the tier takes no more pages."""

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def put(self, key: Key, data: memoryview | bytes) -> bool:
        """Store a page; False if it does not fit or the disk refuses."""
        if self.failure is not None:
            return False
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return True
        size = len(data) + _DIGEST_BYTES
        if size > self._max_bytes:
            return False
        while self.used_bytes + size > self._max_bytes:
            self._drop(next(iter(self._sizes)))
            if self.failure is not None:
                return False
        try:
            with open(self._path(key), "wb", opener=_open) as file:
                file.write(_digest(key, data))
                file.write(data)
        except OSError as error:
            with suppress(OSError):
                self._path(key).unlink(missing_ok=True)
            self._fail("writing", error)
            return False
        self._sizes[key] = size
        self.used_bytes += size
        return True

    def get(self, key: Key) -> bytes | None:
        """A page as it was stored. None if it is missing or damaged; it is then removed."""
        size = self._sizes.get(key)
        if size is None:
            return None
        self._sizes.move_to_end(key)
        try:
            with open(self._path(key), "rb", opener=_open) as file:
                # One byte more than expected: a file that has grown is detected, and not
                # read to its end.
                data = file.read(size + 1) or b""
        except OSError:
            data = b""
        content = memoryview(data)[_DIGEST_BYTES:]
        # The key is part of the digest, so a file under a wrong name counts as damaged.
        if len(data) != size or data[:_DIGEST_BYTES] != _digest(key, content):
            self.num_damaged += 1
            self._drop(key)
            return None
        return bytes(content)

    def clear(self) -> None:
        """Delete every page."""
        for key in list(self._sizes):
            self._drop(key)

    def close(self) -> None:
        """Delete every page and the directory."""
        self._sizes.clear()
        self.used_bytes = 0
        self._delete()

    def _drop(self, key: Key) -> None:
        self.used_bytes -= self._sizes.pop(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            # The file's bytes may still be in use: writing more could exceed `max_bytes`.
            self._fail("deleting", error)

    def _fail(self, action: str, error: OSError) -> None:
        self.failure = self.failure or (
            f"memory.disk_path: {action} a page failed ({error.strerror or error}); pages are "
            "no longer kept on disk, and what is not found is computed again"
        )

    def _path(self, key: Key) -> Path:
        return self._folder / key.hex()


def remove_dead(folder: str | Path) -> None:
    """Delete the directories that tiers of killed processes left in `folder`: those of this user
    whose lock is free. All other files stay, and so do directories that cannot be deleted."""
    try:
        left = [Path(entry) for entry in os.scandir(folder) if _may_be_dead(entry)]
    except OSError:
        return
    for path in left:
        lock = FileLock(path / _LOCK, thread_local=False)
        # Its process still runs (Timeout), or another process is deleting it.
        with suppress(OSError, RuntimeError), lock.acquire(blocking=False):
            shutil.rmtree(path, ignore_errors=True)


def _may_be_dead(entry: os.DirEntry[str]) -> bool:
    """True for a tier's directory of this user. False if it has no lock file: it may be so new that
    its lock is not made yet."""
    if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
        return False
    if hasattr(os, "geteuid") and entry.stat(follow_symlinks=False).st_uid != os.geteuid():
        return False
    return os.path.isfile(os.path.join(entry.path, _LOCK))


def _locked_folder(folder: str | Path) -> tuple[Path, FileLock]:
    """A new directory and its lock, which is held."""
    for _ in range(10):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        lock = FileLock(path / _LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            pass
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        if lock.is_locked:
            # `remove_dead` of another process may have deleted the directory between creating the
            # lock and holding it. The lock then created the directory again, readable by all users.
            path.chmod(0o700)
            return path, lock
    raise OSError(errno.EBUSY, "a directory for pages cannot be locked")


def _remove_own(path: Path, lock: FileLock, pid: int) -> None:
    if os.getpid() != pid:
        return  # A forked copy: the files belong to the process that made the tier.
    with suppress(OSError):
        lock.release()
    shutil.rmtree(path, ignore_errors=True)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS, 0o600)


def _digest(key: Key, data: memoryview | bytes) -> bytes:
    digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES)
    digest.update(data)
    return digest.digest()
