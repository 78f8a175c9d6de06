"""A swapped-out request comes back with its own pages, shared or loaded, in their order."""

from __future__ import annotations

import pytest
from engine.fakes import EchoRunner, full_group

from minserve.clock import VirtualClock
from minserve.memory import KVManager, RadixIndex
from minserve.request import Request, SamplingParams

SIZE, PAGES = 2, 6


def request(name: str, tokens: list[int]) -> Request:
    return Request(name, tokens, SamplingParams(), 0.0, 0, max_len=len(tokens) + 4)


class Store:
    """A manager over pages with real contents."""

    def __init__(self) -> None:
        clock = VirtualClock()
        self.runner = EchoRunner(clock, full_group(PAGES, num_host_slots=16), SIZE)
        self.memory = KVManager(
            full_group(PAGES, num_host_slots=16),
            SIZE,
            4,
            PAGES,
            index=RadixIndex(),
            store=self.runner,
            clock=clock,
        )

    def compute(self, one: Request, count: int) -> None:
        """Write `count` tokens of a request where its block table says, and commit them."""
        start = one.num_computed_tokens
        assert self.memory.reserve(one, count)
        blocks = self.memory.blocks_of(one)
        for at in range(start, start + count):
            self.runner.group(0).pages[blocks[at // SIZE], at % SIZE] = one.token_ids[at]
        self.memory.commit(one, count)

    def read(self, one: Request) -> list[int]:
        pages = self.runner.group(0).pages[list(self.memory.blocks_of(one))]
        return pages.reshape(-1).tolist()[: one.num_computed_tokens]


@pytest.mark.parametrize("taken", range(PAGES + 1))
def test_pages_still_on_the_device_are_shared_and_the_others_come_from_their_own_slots(taken):
    """`taken` pages are used by another request while the first one is away: its cached pages go
    last page first, so that 4, 3, 2, 1 or none of them are found on the device again."""
    store = Store()
    away = request("away", [11, 12, 13, 14, 15, 16, 17, 18, 19])
    store.memory.admit(away)
    store.compute(away, 8)
    assert store.memory.swap_out(away)
    other = request("other", list(range(50, 50 + taken * SIZE + 1)))
    store.memory.admit(other)
    if taken:
        store.compute(other, taken * SIZE)
    kept = sum(1 for block in store.memory.pool.cached_blocks())
    store.memory.release(other)
    assert kept == min(4, PAGES - taken)
    store.memory.admit(away)
    assert away.num_computed_tokens == 8
    assert store.read(away) == away.token_ids[:8]
    assert store.memory.take_events().swapped_in_blocks == 4 - kept
    store.memory.check()
