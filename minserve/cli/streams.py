"""The command line's input and output (stdin, stdout and the files it writes), and their errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OF_STREAMS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class UsageError(ValueError):
    """The command was asked for something that cannot be done. The message is a sentence."""


class OutputError(RuntimeError):
    """A result that could not be written. The message is a sentence."""


def read_stdin() -> str:
    """All of stdin. Raises UsageError if stdin is closed or is not text."""
    if sys.stdin is None:
        raise UsageError("the prompt - is read from stdin, and stdin is closed: give a text")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"byte {error.start} of stdin is not {error.encoding}: give text in that encoding"
        ) from None
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {_reason(error)}") from None


def read_line() -> str:
    """A line of stdin; empty at its end. Raises UsageError as `read_stdin`."""
    if sys.stdin is None:
        raise UsageError("what is said is read from stdin, and stdin is closed")
    try:
        return sys.stdin.readline()
    except (UnicodeDecodeError, OSError) as error:
        reason = _reason(error) if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"stdin cannot be read: {reason}") from None


def check_stdout() -> None:
    """Raise OutputError if stdout is closed, before anything is computed for it."""
    if sys.stdout is None:
        raise OutputError("stdout is closed: there is nowhere to write to")


def stdout_failure(error: Exception) -> str | None:
    """One sentence about the problem with stdout if `error` is an error of stdout; else None."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if isinstance(error, UnicodeEncodeError) and encoding.lower() not in ("utf-8", "utf8"):
        return (
            f"stdout takes only {encoding}, and the text has other characters: set "
            "PYTHONIOENCODING=utf-8"
        )
    # Errors of files have a file name; errors of an open stream do not.
    if isinstance(error, OSError) and error.filename is None and error.errno in _OF_STREAMS:
        return f"the output cannot be written: {_reason(error)}"
    return None


def silence_stdout() -> None:
    """Drop the contents of the buffer, so that the interpreter prints no error at exit."""
    with suppress(OSError, ValueError, AttributeError):  # stdout may be None, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_writable(path: Path, flag: str) -> None:
    """Check that a file can be written here, before its content is computed. Raises UsageError that
    names the file; changes nothing."""
    with _file_errors(path, flag, UsageError):
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
    with _file_errors(path, flag, OutputError):
        yield


@contextmanager
def _file_errors(path: Path, flag: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise kind(f"{flag} {path} cannot be written: {reason}") from None


def _reason(error: OSError) -> str:
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]
