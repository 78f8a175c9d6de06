"""The prefix cache: which tokens of a request are already computed, on the device or
in a lower tier.

Combines index, pool and host tier. `lookup` changes nothing. Knows nothing about block
tables and requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.keys import Key, TokenBlocks
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.index import PrefixIndex
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.host import HostTier


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that need not be computed."""

    blocks: list[int] = field(default_factory=list)
    """Device pages to share, in order of position."""
    partial_block: int | None = None
    """A device page whose first `partial_tokens` are to be copied."""
    partial_tokens: int = 0
    keys: list[Key] = field(default_factory=list)
    """Keys of the pages after `blocks` that lower tiers hold; if there are any, there is
    no partial page."""
    tiers: list[str] = field(default_factory=list)
    """The tier of each of `keys`: "host" or "disk"."""
    first: int = 0
    """Leading pages of the prefix that are not needed; `blocks` are the pages after them."""

    def num_tokens(self, block_size: int) -> int:
        """Tokens of the prefix."""
        blocks = self.first + len(self.blocks) + len(self.keys)
        return blocks * block_size + self.partial_tokens


class PrefixCache:
    """Pages of finished, running and preempted requests, found by their tokens."""

    def __init__(
        self,
        pool: BlockPool,
        index: PrefixIndex,
        host: HostTier | None,
        costs: ResumeCosts,
        clock: Clock,
        events: MemoryEvents,
    ) -> None:
        self.index = index
        self._pool = pool
        self._host = host
        self._costs = costs
        self._clock = clock
        self._events = events
        self._keys: dict[int, Key] = {}
        pool.on_evict = self._evicted

    def lookup(self, token_blocks: TokenBlocks, max_tokens: int) -> Hit:
        """The longest prefix of at most `max_tokens` tokens, and where its pages are."""
        match = self.index.match(token_blocks, max_tokens)
        if self._host is not None:
            keys, tiers = self._below(self._host, token_blocks, len(match.blocks), max_tokens)
            # The choice is between loading these pages and computing their tokens.
            if keys and self._costs.should_load(tiers, len(keys) * token_blocks.block_size):
                return Hit(match.blocks, keys=keys, tiers=tiers)
        return Hit(match.blocks, match.partial_block, match.partial_tokens)

    def _below(
        self, host: HostTier, token_blocks: TokenBlocks, first: int, max_tokens: int
    ) -> tuple[list[Key], list[str]]:
        keys, tiers = [], []
        for index in range(first, max_tokens // token_blocks.block_size):
            key = token_blocks.key(index)
            tier = host.find(key)
            if tier is None:
                break
            keys.append(key)
            tiers.append(tier)
        return keys, tiers

    def load(self, hit: Hit, blocks: list[int]) -> int:
        """Fill `blocks` from the tiers, one for each of the first `hit.keys`; returns how many
        pages were found."""
        assert self._host is not None
        start, done = self._clock.now(), 0
        # In groups of as many pages as the host has slots, because pages from the disk
        # pass through them.
        while slots := self._host.fetch(hit.keys[done : len(blocks)]):
            self._host.load(slots, blocks[done : done + len(slots)])
            done += len(slots)
        if done:
            # A group from both tiers counts as a load from the disk, which takes most of the time.
            tier = "disk" if "disk" in hit.tiers[:done] else "host"
            self._costs.loaded(tier, done, self._clock.now() - start)
        return done

    def touch(self, hit: Hit) -> None:
        """Mark the hit's host pages as just used, so that making room for them does not evict
        them."""
        if self._host is not None:
            self._host.touch(reversed(hit.keys))

    def enter(self, token_blocks: TokenBlocks, index: int, parent: int | None, block: int) -> int:
        """Put a full, committed page into the index; returns the page that the index has
        for its content."""
        known = self.index.insert(token_blocks, index, parent, block)
        if known == block:
            self._pool.mark_indexed(block)
            if self._host is not None:
                self._keys[block] = token_blocks.key(index)
        return known

    def _evicted(self, blocks: list[int]) -> None:
        for block in blocks:
            self.index.remove(block)
        self._events.evicted_blocks += len(blocks)
        if self._host is not None:
            start = self._clock.now()
            # In order of eviction, last pages first: if there is not room for all,
            # those are dropped.
            self._host.demote([self._keys.pop(block) for block in blocks], blocks)
            self._events.transfer_s += self._clock.now() - start

    def clear(self) -> None:
        """Forget every page that no request holds, in every tier."""
        self._pool.drop_cached()
        if self._host is not None:
            self._host.drop_cached()

    def reset(self) -> None:
        """Forget everything in every tier, whatever its state. The caller resets the pool."""
        self.index = type(self.index)()
        self._keys.clear()
        if self._host is not None:
            self._host.reset()

    def check(self) -> None:
        """Verify that index and pool have the same pages. Raises IntegrityError."""
        self.index.check()
        indexed = set(self.index.blocks())
        if indexed != self._pool.indexed_blocks():
            odd = sorted(indexed ^ self._pool.indexed_blocks())
            raise IntegrityError(f"index and pool disagree about pages {odd[:8]}")
        if self._host is not None and self._keys.keys() != indexed:
            raise IntegrityError("an indexed page has no key to be demoted under")
