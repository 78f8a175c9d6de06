"""The radix tree stays sorted, compressed and linked; a lookup reads no unrelated pages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.memory import IntegrityError, RadixIndex, TokenBlocks, root_key
from minserve.memory.prefix import radix

ROOT = root_key(())


def blocks_of(tokens: list[int], block_size: int, root: bytes = ROOT) -> TokenBlocks:
    return TokenBlocks(root, tokens, block_size)


class Shelf:
    """An index and the plainest form of the same facts: (root, prefix) -> page."""

    def __init__(self, block_size: int) -> None:
        self.index = RadixIndex()
        self.size = block_size
        self.pages: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self.num_pages = 0

    def store(self, tokens: list[int], root: bytes = ROOT) -> None:
        token_blocks, parent = blocks_of(tokens, self.size, root), None
        for at in range(len(tokens) // self.size):
            parent = self.index.insert(token_blocks, at, parent, self.num_pages)
            prefix = tuple(tokens[: (at + 1) * self.size])
            assert parent == self.pages.setdefault((root, prefix), self.num_pages)
            self.num_pages += 1

    def evict(self, choice: int) -> None:
        inner = {(root, prefix[: -self.size]) for root, prefix in self.pages}
        leaves = sorted(self.pages.keys() - inner)
        if leaves:
            self.index.remove(self.pages.pop(leaves[choice % len(leaves)]))

    def match(self, tokens: list[int], limit: int, root: bytes = ROOT):
        """What a reader of all pages finds: full pages, then the best partial one, the smallest
        of those that agree as long."""
        size, blocks = self.size, []
        while (len(blocks) + 1) * size <= limit:
            block = self.pages.get((root, tuple(tokens[: (len(blocks) + 1) * size])))
            if block is None:
                break
            blocks.append(block)
        start = len(blocks) * size
        before = tuple(tokens[:start])
        best: tuple[int, tuple[int, ...]] | None = None
        for owner, prefix in self.pages:
            if owner == root and len(prefix) == start + size and prefix[:start] == before:
                agree = 0
                while start + agree < limit and agree < size:
                    if prefix[start + agree] != tokens[start + agree]:
                        break
                    agree += 1
                if agree and (best is None or (-agree, prefix) < (-best[0], best[1])):
                    best = agree, prefix
        if best is None:
            return blocks, None, 0
        return blocks, self.pages[root, best[1]], best[0]


sequences = st.lists(st.integers(0, 2), max_size=14)
roots = st.sampled_from([ROOT, root_key(("other",))])


@given(
    block_size=st.integers(1, 4),
    operations=st.lists(
        st.tuples(st.booleans(), sequences, st.integers(0, 50), roots), max_size=30
    ),
    wanted=st.lists(st.tuples(sequences, st.integers(0, 14), roots), max_size=8),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_the_tree_stays_sound_and_finds_what_reading_every_page_finds(
    block_size, operations, wanted
):
    shelf = Shelf(block_size)
    for stores, tokens, choice, root in operations:
        if stores:
            shelf.store(tokens, root)
        else:
            shelf.evict(choice)
        shelf.index.check()
    for tokens, limit, root in wanted:
        limit = min(limit, len(tokens))
        match = shelf.index.match(blocks_of(tokens, block_size, root), limit)
        found = match.blocks, match.partial_block, match.partial_tokens
        assert found == shelf.match(tokens, limit, root)


def test_evicting_everything_in_any_order_leaves_nothing():
    draw = random.Random(0)
    for _ in range(30):
        shelf = Shelf(2)
        for _ in range(25):
            shelf.store([draw.randrange(2) for _ in range(draw.randrange(16))])
        while shelf.pages:
            shelf.evict(draw.randrange(1000))
            shelf.index.check()
        assert not shelf.index._roots and not shelf.index._node_of


def test_of_pages_that_agree_as_long_the_smallest_is_taken_whenever_it_came():
    for order in ([5, 9, 7], [9, 7, 5], [7, 5, 9]):
        shelf = Shelf(4)
        for last in order:
            shelf.store([1, 2, last, last])
        shelf.store([1, 3, 0, 0])
        match = shelf.index.match(blocks_of([1, 2, 6, 6], 4), 4)
        assert (match.partial_block, match.partial_tokens) == (order.index(5), 2)
        match = shelf.index.match(blocks_of([1, 2, 9, 9], 4), 3)
        assert (match.partial_block, match.partial_tokens) == (order.index(9), 3)


def test_a_join_gives_grandchildren_their_new_parent():
    """a-b branches into b-c-(d|e) and b-f; when f is gone, b and c are one edge again."""
    shelf = Shelf(1)
    for tokens in ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5]):
        shelf.store(tokens)
    shelf.index.remove(shelf.pages.pop((ROOT, (0, 1, 5))))
    shelf.index.check()
    shelf.index.remove(shelf.pages.pop((ROOT, (0, 1, 2, 4))))
    shelf.index.check()
    assert len(shelf.index.nodes()) == 1
    shelf.store([0, 1, 2, 3, 9])
    assert shelf.index.nodes()[0].tokens == (0, 1, 2, 3, 9)
    shelf.index.check()


@pytest.mark.parametrize("shared", [0, 1, 15])
def test_a_lookup_compares_with_two_pages_however_many_there_are(shared, monkeypatch):
    """With a beginning that all share too: it makes no bucket of its own."""
    index, draw = RadixIndex(), random.Random(1)
    start = [7] * shared
    for number in range(3000):
        tokens = start + [draw.randrange(1 << 40) for _ in range(16 - shared)]
        index.insert(blocks_of(tokens, 16), 0, None, number)
    compared = []
    common = radix._common
    monkeypatch.setattr(radix, "_common", lambda a, b: compared.append(1) or common(a, b))
    for _ in range(20):
        wanted = start + [draw.randrange(1 << 40) for _ in range(16 - shared)]
        compared.clear()
        assert index.match(blocks_of(wanted, 16), 16).partial_tokens >= shared
        assert len(compared) <= 2


def test_the_last_page_of_a_namespace_takes_only_its_own_root_away():
    index = RadixIndex()
    keys = [root_key((str(number),)) for number in range(50)]
    for number, key in enumerate(keys):
        index.insert(blocks_of([1, 2], 2, key), 0, None, number)
    roots = index._roots
    index.remove(17)
    assert index._roots is roots and list(roots) == keys[:17] + keys[18:]
    index.check()


def test_a_page_in_the_middle_is_not_removed():
    shelf = Shelf(1)
    shelf.store([0, 1, 2])
    for block in (0, 1):
        with pytest.raises(IntegrityError, match="before the pages that continue it"):
            shelf.index.remove(block)
    shelf.index.check()


def test_a_known_page_in_the_middle_of_an_edge_is_found_and_another_one_splits_it():
    shelf = Shelf(1)
    shelf.store([0, 1, 2, 3])
    token_blocks = blocks_of([0, 1, 2, 9], 1)
    assert shelf.index.insert(token_blocks, 2, 1, 50) == 2  # behind page 1: known
    assert shelf.index.insert(token_blocks, 3, 2, 51) == 51  # behind page 2: new, the edge is cut
    assert sorted(node.blocks for node in shelf.index.nodes()) == [(0, 1, 2), (3,), (51,)]
    shelf.index.check()
