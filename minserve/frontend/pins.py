"""`LLM.pin` and `AsyncLLM.pin`: compute a prefix if it is not computed yet, then pin it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from minserve.engine import Engine
from minserve.engine.pins import PinnedPrefix, check_pin, pin_computed
from minserve.engine.recovery import EngineError
from minserve.frontend.share import EngineShare
from minserve.frontend.thread.loop import EngineThread
from minserve.request import SamplingParams


def pin_here(
    share: EngineShare, token_ids: list[int], salt: str, compute: Callable[[SamplingParams], object]
) -> PinnedPrefix:
    """Pin a prefix in a shared engine. `compute` is called with the parameters of a request that
    computes the prefix."""
    with share.hold() as engine:
        check_pin(engine, token_ids)
        handle = pin_computed(engine, token_ids, salt)
    if handle is None:
        compute(_once(salt))
        with share.hold():
            handle = pin_computed(engine, token_ids, salt)
    if handle is None:
        raise RuntimeError("the prefix was computed and is not in the cache")
    return _pinned(engine, token_ids, handle, functools.partial(share.unpin, handle))


def pin_in_thread(
    thread: EngineThread,
    token_ids: list[int],
    salt: str,
    timeout_s: float | None,
    compute: Callable[[SamplingParams], object],
) -> PinnedPrefix:
    """Pin a prefix in an engine with its own thread; waits at most `timeout_s` for each
    answer of the thread, or without limit if it is None."""
    engine = thread.engine
    thread.ask(lambda: check_pin(engine, token_ids), timeout_s)

    def pin() -> int | None:
        check_pin(engine, token_ids)  # again: another caller may have pinned meanwhile
        return pin_computed(engine, token_ids, salt)

    # Under load, other requests may evict the pages between two commands.
    for _ in range(3):
        handle = thread.ask(pin, timeout_s, undo=_unpin_late(engine))
        if handle is not None:
            let_go = functools.partial(engine.unpin, handle)
            return _pinned(engine, token_ids, handle, functools.partial(thread.tell, let_go))
        compute(_once(salt))
    raise EngineError("the prefix was computed three times, and evicted before it was pinned")


def _once(salt: str) -> SamplingParams:
    """Parameters of a request that computes its prompt, and as little else as possible."""
    return SamplingParams(max_tokens=1, temperature=0.0, cache_salt=salt)


def _pinned(
    engine: Engine, token_ids: list[int], handle: int, let_go: Callable[[], None]
) -> PinnedPrefix:
    size = engine.memory.block_size
    return PinnedPrefix(
        len(token_ids) // size * size, let_go, functools.partial(engine.memory.pins.holds, handle)
    )


def _unpin_late(engine: Engine) -> Callable[[int | None], None]:
    """Makes the function that undoes a pin whose caller has stopped waiting for it."""

    def undo(handle: int | None) -> None:
        if handle is not None:
            engine.unpin(handle)

    return undo
