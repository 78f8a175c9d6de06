"""The bar on stderr that shows how many requests of a call have ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]


class Bar(tqdm):  # type: ignore[misc]
    """A tqdm that releases its lock when drawing fails or is interrupted. All bars of the process
    share that lock: a thread that kept it would stop every other thread that makes a bar."""

    monitor_interval = 0  # no thread; `miniters=1` needs none

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        """Draw the bar."""
        with self.get_lock():
            return bool(super().refresh(nolock=True))


class ProgressBar:
    """A bar that appears after two seconds, and never ends the call that it shows: if stderr is
    missing or cannot be written to (a full disk, a pipe without a reader), it disappears."""

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Bar | None = None
        if shown and sys.stderr is not None:
            self._bar = Bar(total=total, desc="requests", unit="req", delay=2, miniters=1)

    def add(self, count: int) -> None:
        """Record that `count` more requests have ended."""
        self._try(lambda bar: bar.update(count))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._try(Bar.close)

    def _try(self, draw: Callable[[Bar], object]) -> None:
        if self._bar is None:
            return
        try:
            draw(self._bar)
        except Exception:  # a caller's own object in place of stderr may raise anything
            self._bar.disable = True  # its finalizer would draw again
            self._bar = None
