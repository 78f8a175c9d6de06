"""The prefix index: which page already holds the keys and values of which prefix.

Two indexes from the literature with one interface. `HashIndex` is vLLM's: a dictionary from chain
hash to page, whole pages only. `RadixIndex` (in `radix`) is SGLang's: a tree over tokens, which
also finds a prefix that ends in the middle of a page. An index knows pages and tokens; the pool
keeps owners and eviction order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from minserve.memory.keys import Key, TokenBlocks
from minserve.memory.pool import IntegrityError


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix that the index holds."""

    blocks: list[int]
    """Full pages, in order of position."""
    partial_block: int | None = None
    """A page whose first `partial_tokens` tokens continue the prefix: to be copied, not shared."""
    partial_tokens: int = 0


@dataclass(frozen=True, slots=True)
class IndexNode:
    """A run of pages without a branch, for figures and tests."""

    number: int
    parent: int | None
    """Number of the node this one continues; None for the first of a namespace."""
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]


class PrefixIndex(Protocol):
    """The interface of an index. Pages enter when they are full and committed."""

    def match(self, token_blocks: TokenBlocks, max_tokens: int) -> Match:
        """The longest prefix of at most `max_tokens` tokens."""

    def insert(self, token_blocks: TokenBlocks, index: int, parent: int | None, block: int) -> int:
        """Add page `index` of `token_blocks`, which is stored in `block`; `parent` is the page
        before it in this index. Returns the page the index now has for this content. If that is
        another page, the caller changes its block table to it."""

    def remove(self, block: int) -> None:
        """Remove a page that is being evicted."""

    def blocks(self) -> Iterator[int]:
        """Every page of the index."""

    def check(self) -> None:
        """Verify that redundant data agree. Raises IntegrityError."""

    def nodes(self) -> list[IndexNode]:
        """The tree, parents before children."""


class HashIndex:
    """Automatic prefix caching by hash chain (vLLM, Kwon et al., arXiv 2309.06180, section 4.4)."""

    def __init__(self) -> None:
        self._blocks: dict[Key, int] = {}
        self._entries: dict[int, tuple[Key, Key, tuple[int, ...]]] = {}

    def match(self, token_blocks: TokenBlocks, max_tokens: int) -> Match:
        """The longest run of known full pages."""
        blocks = []
        for index in range(max_tokens // token_blocks.block_size):
            block = self._blocks.get(token_blocks.key(index))
            if block is None:
                break
            blocks.append(block)
        return Match(blocks)

    def find(self, key: Key) -> int | None:
        """The page with this key, whether the pages before it are known or not."""
        return self._blocks.get(key)

    def insert(self, token_blocks: TokenBlocks, index: int, parent: int | None, block: int) -> int:
        """Add a page; returns the page the index now has for this content."""
        key = token_blocks.key(index)
        known = self._blocks.setdefault(key, block)
        if known == block:
            before = token_blocks.key(index - 1) if index else token_blocks.root
            self._entries[block] = (key, before, token_blocks.tokens(index))
        return known

    def remove(self, block: int) -> None:
        """Remove a page: its number will soon hold other tokens."""
        if block not in self._entries:
            raise IntegrityError(f"page {block} is not in the index")
        key, _, _ = self._entries.pop(block)
        del self._blocks[key]

    def blocks(self) -> Iterator[int]:
        """Every page of the index."""
        return iter(self._entries)

    def check(self) -> None:
        """Verify that the map from keys to pages and the map from pages to keys agree.
        Raises IntegrityError."""
        if self._blocks != {key: block for block, (key, _, _) in self._entries.items()}:
            raise IntegrityError("the hash index finds other pages than it knows")

    def nodes(self) -> list[IndexNode]:
        """One node per page: this index does not group pages into longer edges."""
        numbers = {key: number for number, (key, _, _) in enumerate(self._entries.values())}
        return [
            IndexNode(numbers[key], numbers.get(before), tokens, (block,))
            for block, (key, before, tokens) in self._entries.items()
        ]
