"""Which tokens of a waiting request are already computed, and how its block table gets their pages.

Finds them in the prefix cache and in other samples of the same prompt. Full pages are shared,
a part of a page is copied, and pages of lower tiers are loaded. A request's own full pages
enter the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.pool import BlockPool
from minserve.memory.prefix.cache import Hit, PrefixCache
from minserve.memory.storage.store import BlockStore
from minserve.memory.tables import BlockTable, BlockTables
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class Found:
    """Where the computed tokens of a waiting request are. Valid until a page changes hands: it is
    looked up when an admission begins, and serves it to its end."""

    num_tokens: int
    hit: Hit
    """Pages on the device and in lower tiers. Of a swapped-out request: those that the prefix cache
    still has, so that they need not be loaded."""


class Reuse:
    """Finds computed pages, puts them into block tables, and adds new ones to the cache. `prefix`
    is None without a prefix cache."""

    def __init__(
        self,
        pool: BlockPool,
        tables: BlockTables,
        prefix: PrefixCache | None,
        store: BlockStore,
        clock: Clock,
        events: MemoryEvents,
        block_size: int,
    ) -> None:
        self._pool = pool
        self._tables = tables
        self._prefix = prefix
        self._store = store
        self._clock = clock
        self._events = events
        self._block_size = block_size
        self._token_blocks: dict[Request, TokenBlocks] = {}

    def find(self, request: Request, is_swapped: bool) -> Found:
        """What already holds tokens of a waiting request, which may be swapped out; changes
        nothing.

        One token is always left to compute: a hit on the whole request would leave no query row,
        and so no logits to draw the next token from.
        """
        if is_swapped:
            tokens = request.num_computed_tokens
            return Found(tokens, self._lookup(request, tokens))
        hit = self._lookup(request, request.num_tokens - 1)
        num_tokens = hit.num_tokens(self._block_size)
        leader = self._tables.get(request.leader)
        if leader is None or request.leader is None or request.params.prompt_logprobs is not None:
            return Found(num_tokens, hit)
        # Another sample of the same prompt: use the part of the prompt that it has computed.
        tokens = min(request.leader.num_computed_tokens, request.num_prompt_tokens - 1)
        if tokens <= num_tokens:
            return Found(num_tokens, hit)
        full, rest = divmod(tokens, self._block_size)
        hit = Hit(leader.blocks[:full], leader.blocks[full] if rest else None, rest)
        return Found(tokens, hit)

    def _lookup(self, request: Request, limit: int) -> Hit:
        # If the prompt is scored, the logits of every position are needed.
        if self._prefix is None or request.params.prompt_logprobs is not None:
            return Hit()
        return self._prefix.lookup(self._blocks_of(request), limit)

    def take(self, request: Request, table: BlockTable, hit: Hit) -> int:
        """Put the hit's pages into the block table: share full pages, copy a partial one, load
        pages of lower tiers. Returns how many tokens they hold, which is less than was found if a
        page of a lower tier is damaged."""
        for block in hit.blocks:
            self._pool.share(block)
        self._tables.extend(table, hit.blocks)
        num_tokens = len(hit.blocks) * self._block_size
        source = hit.partial_block
        if source is not None:
            # Held during the copy: allocating a page for it might evict the source.
            self._pool.share(source)
            try:
                if self._pool.num_available:
                    self._tables.extend(table, self._pool.allocate(1))
                    self._copy(source, table.blocks[-1])
                    num_tokens += hit.partial_tokens
            finally:
                self._pool.release([source])
        self._events.hit_tokens += num_tokens
        return num_tokens + (self._load(request, table, hit) if hit.keys else 0)

    def enter(self, request: Request, table: BlockTable, first: int, stop: int) -> None:
        """Put full pages `first` to `stop - 1` of a request into the prefix index. If the index
        already has a page with the same content, the block table is changed to that page."""
        assert self._prefix is not None
        blocks = table.blocks
        for index in range(first, stop):
            parent = blocks[index - 1] if index else None
            mine = blocks[index]
            canonical = self._prefix.enter(self._blocks_of(request), index, parent, mine)
            if canonical != mine:
                self._tables.replace(table, index, canonical)

    def forget(self, request: Request) -> None:
        """Drop the page keys of a request that has ended."""
        self._token_blocks.pop(request, None)

    def reset(self) -> None:
        """Drop the page keys of every request."""
        self._token_blocks.clear()

    def _blocks_of(self, request: Request) -> TokenBlocks:
        tokens = self._token_blocks.get(request)
        if tokens is None:
            root = root_key(request.cache_namespace)
            tokens = TokenBlocks(root, request.token_ids, self._block_size)
            self._token_blocks[request] = tokens
        return tokens

    def _load(self, request: Request, table: BlockTable, hit: Hit) -> int:
        assert self._prefix is not None
        start = self._clock.now()
        self._prefix.touch(hit)
        first = len(table.blocks)
        blocks = self._pool.allocate(min(len(hit.keys), self._pool.num_available))
        self._tables.extend(table, blocks)
        loaded = self._prefix.load(hit, blocks)
        self._tables.shrink(table, first + loaded)
        self.enter(request, table, first, first + loaded)
        self._events.loaded_tokens += loaded * self._block_size
        self._events.transfer_s += self._clock.now() - start
        return loaded * self._block_size

    def _copy(self, source: int, target: int) -> None:
        start = self._clock.now()
        self._store.copy([source], [target])
        self._events.copied_blocks += 1
        self._events.transfer_s += self._clock.now() - start
