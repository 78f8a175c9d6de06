"""The bar on stderr that shows how many requests of a call have ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]


class ProgressBar:
    """A bar that appears after two seconds, and never ends the call that it shows: if stderr is
    missing or cannot be written to (a full disk, a pipe without a reader), it disappears."""

    def __init__(self, total: int, shown: bool) -> None:
        disable = not shown or sys.stderr is None
        self._bar = tqdm(total=total, desc="requests", unit="req", delay=2, disable=disable)

    def add(self, count: int) -> None:
        """Record that `count` more requests have ended."""
        self._try(lambda: self._bar.update(count))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._try(self._bar.close)

    def _try(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except Exception:  # a caller's own object in place of stderr may raise anything
            self._bar.disable = True
