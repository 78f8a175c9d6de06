"""Pages are free or owned, never both; and a check that really checks."""

from __future__ import annotations

import pytest
from engine.fakes import full_group

from minserve.memory import BlockPool, IntegrityError, KVManager
from minserve.request import Request, SamplingParams


def make_request(name: str = "r") -> Request:
    return Request(name, [1], SamplingParams(), arrival_s=0.0, seed=0)


def make_manager() -> KVManager:
    return KVManager(full_group(8), block_size=4, max_num_seqs=3, blocks_per_request=6)


def test_allocation_takes_each_page_once_and_release_gives_it_back():
    pool = BlockPool(5)
    blocks = pool.allocate(3) + pool.allocate(2)
    assert sorted(blocks) == list(range(5))
    assert pool.num_free == 0
    pool.release(blocks[:2])
    assert (pool.num_free, pool.num_owned) == (2, 3)


def test_a_page_freed_twice_is_an_error():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(IntegrityError, match="freed twice"):
        pool.release(blocks)


def test_more_pages_than_there_are_is_an_error():
    with pytest.raises(IntegrityError, match="3 pages wanted, 2 available"):
        BlockPool(2).allocate(3)


def test_reserve_takes_pages_only_when_a_token_needs_one():
    memory, request = make_manager(), make_request()
    memory.admit(request)
    taken = []
    for _ in range(9):
        assert memory.reserve(request, 1)
        memory.commit(request, 1)
        taken.append(memory.pool.num_owned)
    assert taken == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_reserve_that_does_not_fit_changes_nothing():
    memory, a, b = make_manager(), make_request("a"), make_request("b")
    memory.admit(a)
    memory.admit(b)
    assert memory.reserve(a, 24)
    assert not memory.reserve(b, 12)
    assert memory.blocks_of(b) == ()
    memory.check()


def test_commit_keeps_a_prefix_and_returns_surplus_pages():
    memory, request = make_manager(), make_request()
    memory.admit(request)
    assert memory.reserve(request, 11)
    memory.commit(request, 5)
    assert memory.use().kv_tokens == 5
    assert memory.use().blocks_used == 2
    memory.check()


def test_commit_beyond_what_was_reserved_is_an_error():
    memory, request = make_manager(), make_request()
    memory.admit(request)
    memory.reserve(request, 4)
    with pytest.raises(IntegrityError, match="did not reserve"):
        memory.commit(request, 5)


def test_release_twice_is_harmless():
    memory, request = make_manager(), make_request()
    memory.admit(request)
    memory.reserve(request, 4)
    memory.release(request)
    memory.release(request)
    assert memory.use().blocks_used == 0
    memory.check()


def corrupt_double_owner(memory: KVManager, a: Request, b: Request) -> None:
    memory._tables[a].blocks[0] = memory._tables[b].blocks[0]


def corrupt_lost_page(memory: KVManager, a: Request, b: Request) -> None:
    memory._tables[a].blocks.pop()


def corrupt_free_list(memory: KVManager, a: Request, b: Request) -> None:
    memory.pool._free.append(memory.pool._free[0])


def corrupt_table(memory: KVManager, a: Request, b: Request) -> None:
    memory._tables.rows[memory._tables[a].row, 0] += 1


def corrupt_row(memory: KVManager, a: Request, b: Request) -> None:
    memory._tables._free_rows.append(memory._tables[a].row)


def corrupt_tokens(memory: KVManager, a: Request, b: Request) -> None:
    a.num_computed_tokens = 1000


@pytest.mark.parametrize(
    "corrupt",
    [
        corrupt_double_owner,
        corrupt_lost_page,
        corrupt_free_list,
        corrupt_table,
        corrupt_row,
        corrupt_tokens,
    ],
)
def test_the_integrity_check_sees_every_kind_of_damage(corrupt):
    memory, a, b = make_manager(), make_request("a"), make_request("b")
    for request in (a, b):
        memory.admit(request)
        memory.reserve(request, 6)
        memory.commit(request, 6)
    memory.check()
    corrupt(memory, a, b)
    with pytest.raises(IntegrityError):
        memory.check()
