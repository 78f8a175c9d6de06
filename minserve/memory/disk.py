"""The slowest tier: pages as files, each with a checksum.

A damaged or missing file is a miss, never a wrong answer; a disk that is full ends the tier with a
sentence, never a request. Files live in a directory of their own and go when the tier is closed,
collected as garbage, or left behind at the end of the process.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path

from minserve.memory.chain import Key

_DIGEST_BYTES = 16


class DiskTier:
    """Pages by key, at most `max_bytes` of them, the least recently used going first."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        """Raises OSError where `folder` cannot be made or written."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="minserve-kv-", dir=folder))
        self._delete = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self.used_bytes = 0
        self.num_damaged = 0
        """Files that were missing or whose checksum was wrong when they were read."""
        self.failure: str | None = None
        """Why the tier takes no more pages, in a sentence."""

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def put(self, key: Key, data: memoryview | bytes) -> bool:
        """Store a page; False where it does not fit or the disk refuses."""
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
        try:
            with open(self._path(key), "wb") as file:
                file.write(_digest(key, data))
                file.write(data)
        except OSError as error:
            self._path(key).unlink(missing_ok=True)
            self.failure = (
                f"memory.disk_path: writing a page failed ({error.strerror or error}); pages are "
                "no longer kept on disk, and what is not found is computed again"
            )
            return False
        self._sizes[key] = size
        self.used_bytes += size
        return True

    def get(self, key: Key) -> bytes | None:
        """A page as it was stored; None where it is missing or damaged, and it is forgotten."""
        if key not in self._sizes:
            return None
        self._sizes.move_to_end(key)
        try:
            data = self._path(key).read_bytes()
        except OSError:
            data = b""
        content = memoryview(data)[_DIGEST_BYTES:]
        # The key is part of the digest: a file under a wrong name is damage too.
        if len(data) != self._sizes[key] or data[:_DIGEST_BYTES] != _digest(key, content):
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
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self._folder / key.hex()


def _digest(key: Key, data: memoryview | bytes) -> bytes:
    digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES)
    digest.update(data)
    return digest.digest()
