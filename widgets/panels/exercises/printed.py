"""What a solution prints while it is checked: kept short, and shown with the case."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

MOST = 2000
"""Characters kept. A page with megabytes of output would freeze."""


class Printed:
    """The beginning of what was printed, and how much more there was."""

    def __init__(self) -> None:
        self.text = ""
        self.left_out = 0

    def add(self, text: str) -> None:
        """Keep what still fits."""
        room = MOST - len(self.text)
        self.text += text[:room]
        self.left_out += max(0, len(text) - room)

    def __str__(self) -> str:
        more = f"\n(and {self.left_out:,} more characters)" if self.left_out else ""
        # Half of a character cannot be sent to a page.
        return self.text.rstrip().encode(errors="replace").decode() + more


class _Split:
    """A stream that keeps one thread's text and passes on all other threads'."""

    def __init__(self, stream: Any, printed: Printed) -> None:
        self._stream, self._printed = stream, printed
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        else:
            self._printed.add(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printed_here(printed: Printed) -> Iterator[None]:
    """Keep what this thread prints, on stdout and stderr, instead of showing it."""
    before = sys.stdout, sys.stderr
    mine = _Split(sys.stdout, printed), _Split(sys.stderr, printed)
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        # Another check may have put its own there meanwhile; what the solution put there goes.
        if sys.stdout is mine[0] or not isinstance(sys.stdout, _Split):
            sys.stdout = before[0]
        if sys.stderr is mine[1] or not isinstance(sys.stderr, _Split):
            sys.stderr = before[1]
