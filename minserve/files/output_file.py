"""Files that a command is asked to write: checked before the work, and errors that name the file.

Knows nothing about what is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minserve.files.cache_dir import replace


class OutputError(RuntimeError):
    """A result that cannot be written. The message is a sentence."""


def check_writable(path: Path, flag: str) -> None:
    """Check that a file can be written here, before its content is computed. Raises OutputError
    that names the file and the option (`flag`) that asked for it; changes nothing."""
    with writing(path, flag):
        if path.is_dir():
            raise OSError(errno.EISDIR, "it is a directory")
        if path.exists() and not path.is_file():  # renaming onto a device would replace it
            raise OSError(errno.EINVAL, "it is no regular file")
        if not path.parent.is_dir():
            raise OSError(errno.ENOTDIR, f"{path.parent} is no directory")
        if path.exists() and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "permission denied")
        # Only an attempt detects quotas, read-only mounts and names that are too long.
        trial = path.with_name(path.name + ".tmp")
        with suppress(FileExistsError):
            os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            trial.unlink()


@contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Turn an error while the file is written into an OutputError that names the file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise OutputError(f"{flag} {path} cannot be written: {reason}") from None


def write_text(path: Path, text: str, flag: str) -> None:
    """Write a file completely or, with an OutputError, not at all: what was there before stays."""
    with writing(path, flag):
        replace(path, text.encode(), mode=0o644)


def reason_of(error: OSError) -> str:
    """What the system says about the error, to stand at the end of a sentence."""
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]
