"""The command line's stdin, stdout and stderr, and the sentence with which an error ends a command.
Files that it writes are in `files.output_file`."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from minserve.cli.parser import hint
from minserve.files.output_file import OutputError, reason_of

_OF_STREAMS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class UsageError(ValueError):
    """The command was asked for something that cannot be done. The message is a sentence."""


class InputError(RuntimeError):
    """stdin cannot be read, or what is read is not text. The message is a sentence."""


def read_stdin() -> str:
    """All of stdin. Raises UsageError if stdin is closed, InputError if it is not text."""
    if sys.stdin is None:
        raise UsageError("the prompt - is read from stdin, and stdin is closed: give a text")
    _refuse_what_is_no_text()
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start} of stdin is not {error.encoding}: give text in that encoding, or "
            "say which it is: PYTHONIOENCODING=latin-1"
        ) from None
    except OSError as error:
        raise InputError(f"stdin cannot be read: {reason_of(error)}") from None


def read_line() -> str:
    """A line of stdin; empty at its end. Raises UsageError and InputError as `read_stdin`."""
    if sys.stdin is None:
        raise UsageError("what is said is read from stdin, and stdin is closed")
    _refuse_what_is_no_text()
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InputError(
            f"a line of stdin is not {error.encoding}: give text in that encoding, or say which "
            "it is: PYTHONIOENCODING=latin-1"
        ) from None
    except OSError as error:
        raise InputError(f"stdin cannot be read: {reason_of(error)}") from None


def _refuse_what_is_no_text() -> None:
    """In the C locale Python reads bytes that are no text as lone surrogates, and the error would
    come later and elsewhere."""
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "strict":
        sys.stdin.reconfigure(errors="strict")


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
        return f"the output cannot be written: {reason_of(error)}"
    return None


def file_failure(error: OSError) -> str:
    """One sentence about a file that could not be opened, read or written."""
    if error.filename is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {reason_of(error)}"


def say(sentence: str) -> None:
    """A line on stderr, where there is one that takes it."""
    with suppress(OSError, ValueError):
        print(sentence, file=sys.stderr)


def silence(*outputs: TextIO | None) -> None:
    """Drop the contents of the buffers, so that the interpreter prints no error at exit."""
    for output in outputs:
        with suppress(OSError, ValueError, AttributeError):  # may be None, or not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # type: ignore[union-attr]


def explain(error: Exception, prog: str) -> int:
    """A sentence on stderr for an error meant for people, and its exit code; a bug is raised."""
    from minserve.config import ConfigError
    from minserve.request import InvalidRequestError

    if isinstance(error, (ConfigError, InvalidRequestError, UsageError)):
        say(f"minserve: {error}\n{hint(prog)}")
        return 2
    if _is_sentence(error):
        say(f"minserve: {error}")
        return 1
    sentence = stdout_failure(error)
    if sentence is not None:
        silence(sys.stdout)
        say(f"minserve: {sentence}")
        return 1
    if isinstance(error, OSError):  # a disk, a permission: not a bug of the program
        say(f"minserve: {file_failure(error)}")
        return 1
    raise error


def _is_sentence(error: Exception) -> bool:
    """True for our own errors. Any other error is a bug and keeps its traceback."""
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return True  # raised by us, with a sentence
    return type(error).__module__.startswith("minserve.")
