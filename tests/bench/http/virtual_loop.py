"""An event loop on virtual time: it jumps to the next timer when nothing else is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self.now_s = 0.0
        self._clock_resolution = 1e-12
        select = self._selector.select

        def jump(timeout: float | None = None) -> Any:
            events = select(0)
            if not events and timeout is None:
                raise RuntimeError("nothing will ever happen again")
            if not events and timeout:
                self.now_s += timeout
            return events

        self._selector.select = jump

    def time(self) -> float:
        return self.now_s


class LoopClock:
    """The running loop's time as a `Clock`."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wait_until(self, deadline_s: float) -> None:
        raise NotImplementedError


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
