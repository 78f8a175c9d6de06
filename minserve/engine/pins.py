"""Pinned prefixes: pages that the prefix cache may not evict, held by a handle.

Checks whether a prefix may be pinned, and unpins it. The caller computes the prefix first, because
that takes a run of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from minserve.config.rules.memory import pin_refused
from minserve.engine import Engine
from minserve.inputs.checks import shorten
from minserve.request import InvalidRequestError

MAX_PINNED_SHARE = 0.5
"""Largest part of the pool that pins may hold: requests need the rest to run."""


class PinnedPrefix:
    """A prefix that stays on the device until `unpin()`, or until the end of a `with` block."""

    def __init__(
        self, num_tokens: int, let_go: Callable[[], None], holds: Callable[[], bool]
    ) -> None:
        self.num_tokens = num_tokens
        """Pinned tokens: whole pages only, so up to one page less than was asked for."""
        self._let_go: Callable[[], None] | None = let_go
        self._holds = holds

    @property
    def active(self) -> bool:
        """True until it is unpinned, or until an engine that starts over after an error empties its
        cache."""
        return self._let_go is not None and self._holds()

    def unpin(self) -> None:
        """Allow the pages to be evicted again. Calling it twice does no harm."""
        if self._let_go is not None:
            self._let_go()
            self._let_go = None  # last: an interrupted call can be repeated

    def __enter__(self) -> PinnedPrefix:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unpin()


def check_pinned(pinned: object) -> PinnedPrefix:
    """`pinned`, checked to be a result of `pin`. Raises InvalidRequestError."""
    if isinstance(pinned, PinnedPrefix):
        return pinned
    raise InvalidRequestError(f"unpin({shorten(pinned)}): expected what pin() returned")


def check_pin(engine: Engine, token_ids: Sequence[int]) -> None:
    """Check that a prefix may be pinned.

    Raises ConfigError without a prefix cache, and InvalidRequestError for a prefix shorter than a
    page or one that would leave requests too little of the pool.
    """
    memory = engine.memory
    if memory.prefix is None:
        raise pin_refused()
    blocks = len(token_ids) // memory.block_size
    if not blocks:
        raise InvalidRequestError(
            f"pin(): {len(token_ids)} tokens do not fill a page of {memory.block_size}, and pages "
            "are pinned whole: pin a longer prefix, or use a smaller memory.block_size"
        )
    for number, group in enumerate(memory.groups):
        mine = blocks - group.first_pinned(blocks)
        pinned, total = memory.pins.num_blocks(number), group.pool.num_blocks
        most = int(total * MAX_PINNED_SHARE)
        if pinned + mine > most:
            raise InvalidRequestError(
                f"pin(): {mine} pages beside the {pinned} pinned already are more than {most}, "
                f"half of the pool of {total}, whose rest requests need: unpin something, pin "
                "less, or raise memory.kv_bytes"
            )
        left = total - pinned - mine
        needed = group.needed(0, memory.blocks_for(engine.longest_live_tokens))
        if needed > left:
            raise InvalidRequestError(
                f"pin(): {mine} pages would leave {left}, fewer than a request that is being "
                f"served may need ({needed}): pin before it is sent or after it has ended, or "
                "raise memory.kv_bytes"
            )


def pin_computed(engine: Engine, token_ids: Sequence[int], cache_salt: str = "") -> int | None:
    """Pin a prefix if all its full pages are on the device. Returns the handle, or None (and pins
    nothing) if a page is missing."""
    namespace = (cache_salt,) if cache_salt else ()
    handle, num_tokens = engine.memory.pins.add(token_ids, namespace)
    if num_tokens == len(token_ids) // engine.memory.block_size * engine.memory.block_size:
        return handle
    engine.memory.pins.remove(handle)
    return None
