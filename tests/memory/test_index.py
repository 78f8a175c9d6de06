"""Both prefix indexes find what a dictionary of prefixes finds, whatever enters and leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minserve.memory import HashIndex, IntegrityError, RadixIndex, TokenBlocks, root_key

ROOT = root_key(())
INDEXES = [HashIndex, RadixIndex]


def blocks_of(tokens: list[int], block_size: int, root: bytes = ROOT) -> TokenBlocks:
    return TokenBlocks(root, tokens, block_size)


class Library:
    """An index and, beside it, the same facts in the plainest form: prefix -> page."""

    def __init__(self, index: HashIndex | RadixIndex, block_size: int) -> None:
        self.index = index
        self.block_size = block_size
        self.pages: dict[tuple[int, ...], int] = {}
        self.num_pages = 0

    def store(self, tokens: list[int]) -> None:
        """Enter every full page of a sequence, as a request that computes it does."""
        token_blocks, parent = blocks_of(tokens, self.block_size), None
        for index in range(len(tokens) // self.block_size):
            mine = self.num_pages
            self.num_pages += 1
            canonical = self.index.insert(token_blocks, index, parent, mine)
            prefix = tuple(tokens[: (index + 1) * self.block_size])
            assert canonical == self.pages.setdefault(prefix, mine)
            parent = canonical

    def evict_a_leaf(self, choice: int) -> None:
        inner = {prefix[: -self.block_size] for prefix in self.pages}
        leaves = sorted(prefix for prefix in self.pages if prefix not in inner)
        if leaves:
            prefix = leaves[choice % len(leaves)]
            self.index.remove(self.pages.pop(prefix))

    def expected(self, tokens: list[int], limit: int) -> tuple[list[int], int]:
        """Pages of the longest full match, and how far the best next page goes on."""
        size, blocks = self.block_size, []
        while (prefix := tuple(tokens[: (len(blocks) + 1) * size])) in self.pages:
            if len(prefix) > limit or len(prefix) < (len(blocks) + 1) * size:
                break
            blocks.append(self.pages[prefix])
        start = len(blocks) * size
        best = 0
        for prefix in self.pages:
            if len(prefix) == start + size and list(prefix[:start]) == tokens[:start]:
                pairs = zip(prefix[start:], tokens[start:limit], strict=False)
                best = max(best, next((i for i, (a, b) in enumerate(pairs) if a != b), -1))
                agree = min(size, len(tokens[start:limit]))
                if list(prefix[start : start + agree]) == tokens[start : start + agree]:
                    best = max(best, agree)
        return blocks, best


sequences = st.lists(st.integers(0, 2), max_size=14)


@pytest.mark.parametrize("kind", INDEXES)
@given(data=st.data(), block_size=st.integers(1, 4))
def test_the_longest_prefix_is_found_whatever_was_stored_and_evicted(kind, data, block_size):
    library = Library(kind(), block_size)
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.integers(0, 2)):
            library.store(data.draw(sequences))
        else:
            library.evict_a_leaf(data.draw(st.integers(0, 50)))
        wanted = data.draw(sequences)
        limit = data.draw(st.integers(0, len(wanted)))
        match = library.index.match(blocks_of(wanted, block_size), limit)
        blocks, partial = library.expected(wanted, limit)
        assert match.blocks == blocks
        if kind is RadixIndex:
            assert match.partial_tokens == partial
            assert (match.partial_block is None) == (partial == 0)
        else:
            assert match.partial_block is None
        assert set(library.index.blocks()) == set(library.pages.values())


@pytest.mark.parametrize("kind", INDEXES)
@given(data=st.data())
def test_nodes_spell_every_stored_prefix(kind, data):
    library = Library(kind(), 2)
    for tokens in data.draw(st.lists(sequences, max_size=8)):
        library.store(tokens)
    for _ in range(data.draw(st.integers(0, 6))):
        library.evict_a_leaf(data.draw(st.integers(0, 50)))
    nodes = library.index.nodes()
    spelled: dict[int, tuple[int, ...]] = {}
    found: dict[tuple[int, ...], int] = {}
    for node in nodes:
        before = spelled[node.parent] if node.parent is not None else ()
        spelled[node.number] = before + node.tokens
        for i, block in enumerate(node.blocks):
            found[before + node.tokens[: 2 * (i + 1)]] = block
    assert found == library.pages
    if kind is RadixIndex:
        # Compressed: a run ends only where something branches off, or ends.
        children = [node.parent for node in nodes]
        assert all(children.count(node.number) != 1 for node in nodes)


@pytest.mark.parametrize("kind", INDEXES)
def test_namespaces_share_nothing(kind):
    index = kind()
    tokens = [1, 2, 3, 4]
    index.insert(blocks_of(tokens, 2, root_key(("salt", "a"))), 0, None, 7)
    assert index.match(blocks_of(tokens, 2, root_key(("salt", "b"))), 4).blocks == []
    assert index.match(blocks_of(tokens, 2, root_key(("salt", "a"))), 4).blocks == [7]


def test_root_keys_do_not_run_together():
    assert root_key(("ab", "c")) != root_key(("a", "bc")) != root_key(("abc",))


@pytest.mark.parametrize("kind", INDEXES)
def test_removing_an_unknown_page_is_an_error(kind):
    with pytest.raises(IntegrityError, match="not in the index"):
        kind().remove(3)


def test_a_radix_page_is_not_removed_before_those_that_continue_it():
    index, token_blocks = RadixIndex(), blocks_of([1, 2, 3, 4], 2)
    index.insert(token_blocks, 0, None, 0)
    index.insert(token_blocks, 1, 0, 1)
    with pytest.raises(IntegrityError, match="before the pages that continue it"):
        index.remove(0)
