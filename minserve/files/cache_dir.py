"""Where this user's caches are, and how their files are read and written.

A cache only saves time. A file that is damaged, from another version or another user's, or a
directory that cannot be written, costs the time to compute again and a warning, never an
exception. Files are read only from a directory that only this user can write. Knows nothing about
what the files contain.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from minserve.files.json_file import FileError, read_json

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""About a hundred times the largest file of measurements we know."""
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class CacheWarning(UserWarning):
    """Warning: something kept between runs cannot be used, and is computed again."""


class UnsafeError(OSError):
    """A file or directory that other users could have written. The message is a sentence."""


def cache_directory() -> Path:
    """Where measurements of this machine and fetched models are kept: `MINSERVE_CACHE_DIR`, or the
    user's cache."""
    if chosen := os.environ.get("MINSERVE_CACHE_DIR"):
        return Path(chosen)
    return user_cache_directory()


def user_cache_directory() -> Path:
    """`minserve` in the system's cache directory for this user; in the temporary directory if the
    user has no home."""
    try:
        home = Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"minserve-{_user() or 0}"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = os.environ.get("XDG_CACHE_HOME") or str(home / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(home / ".cache")
    return Path(base) / "minserve"


def secure(directory: Path) -> None:
    """Make a directory that only this user can write, or check that it is one.

    If an earlier version or the umask left the default `minserve` directory open, it is closed to
    other users; a directory that the user chose is only checked. Raises UnsafeError, or another
    OSError if the directory cannot be made.
    """
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.stat(directory)
    own = directory == user_cache_directory() and _is_ours(status)
    # The target of a link may be open to others on purpose.
    if own and _is_open(status) and not directory.is_symlink():
        os.chmod(directory, 0o700)
        status = os.stat(directory)
    # The owner of a link can change its target at any time.
    for found in (os.lstat(directory), status):
        if not _is_ours(found):
            raise UnsafeError(f"{directory} belongs to another user")
    if _is_open(status):
        raise UnsafeError(
            f"other users can write to {directory}: run `chmod 700` on it, or choose another one"
        )


def check_file(path: Path) -> None:
    """Raise UnsafeError for a file that is not regular, or that other users own or can write, and
    OSError if it does not exist."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeError(f"{path.name} is not a regular file")
    if not _is_ours(status):
        raise UnsafeError(f"{path.name} belongs to another user")
    if _is_open(status):
        raise UnsafeError(f"other users can write to {path.name}")


def read(path: Path, parse: Callable[[Any], T], what: str) -> T | None:
    """The result of `parse` for the contents of a cached JSON file. None if there is no
    such file; None with a warning if it cannot be used. `what` names its content ("the
    ceilings of this machine").

    `parse` may raise ValueError, KeyError and TypeError for content that it does not know.
    """
    try:
        if not os.path.lexists(path):
            return None
        secure(path.parent)
        check_file(path)
        return parse(read_json(path, max_bytes=MAX_BYTES, what=what))
    except FileError as error:
        reason = str(error).removeprefix(f"{path} ").rstrip(".")
    except OSError as error:
        reason = f"is not used: {_said(error)}"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
        reason = f"cannot be used: {error}"
    say_once(f"{path.name} in the cache {reason}. It is made again.")
    return None


def write(path: Path, content: Any, what: str) -> bool:
    """Write JSON, completely or not at all; False, with a warning, if that fails."""
    try:
        secure(path.parent)
        replace(path, json.dumps(content, indent=1, allow_nan=False).encode())
    except (OSError, ValueError) as error:
        say_once(f"{what} cannot be kept for the next time: {_said(error)}.")
        return False
    return True


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that other processes see all of it or nothing. Raises OSError."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            # A rename may reach the disk before the content does: a crash would then leave a file
            # of zeros under the right name.
            os.fsync(descriptor)
        os.chmod(partial, mode)
        move(Path(partial), path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def move(source: Path, target: Path) -> None:
    """`os.replace`, even if a directory is in the way. Raises OSError."""
    try:
        os.replace(source, target)
    except OSError:
        if target.is_symlink() or not target.is_dir():
            raise
        shutil.rmtree(target)
        os.replace(source, target)


@functools.cache
def say_once(sentence: str) -> None:
    """Give a warning, once per process."""
    warnings.warn(sentence, CacheWarning, stacklevel=3)


def _said(error: Exception) -> str:
    if isinstance(error, UnsafeError):
        return str(error)
    return str(getattr(error, "strerror", None) or error)


def _is_ours(status: os.stat_result) -> bool:
    """True for a file of this user, or of root, which can write any file anyway."""
    return _user() in (None, status.st_uid) or status.st_uid == 0


def _is_open(status: os.stat_result) -> bool:
    return _user() is not None and bool(status.st_mode & _OTHERS_MAY_WRITE)


def _user() -> int | None:
    """The user's number; None if users have none (Windows protects a user's cache by itself)."""
    return os.geteuid() if hasattr(os, "geteuid") else None
