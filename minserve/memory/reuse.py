"""Which tokens of a waiting request are already computed, and how its block tables get their pages.

Finds them in the prefix cache and in other samples of the same prompt. Full pages are shared,
a part of a page is copied, and pages of lower tiers are loaded. A request's own full pages
enter the cache. What is found must be there in every cache group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.group import PageGroup
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.prefix.cache import Hit
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class Found:
    """Where the computed tokens of a waiting request are. Valid until a page changes hands: it is
    looked up when an admission begins, and serves it to its end."""

    num_tokens: int
    hits: tuple[Hit, ...]
    """By cache group: pages on the device and in lower tiers. Of a swapped-out request, those that
    the prefix cache still has, so that they need not be loaded."""


class Reuse:
    """Finds computed pages, puts them into block tables, and adds new ones to the cache."""

    def __init__(
        self,
        groups: Sequence[PageGroup],
        primary: int,
        clock: Clock,
        events: MemoryEvents,
        block_size: int,
    ) -> None:
        self._groups = groups
        self._primary = primary
        self._clock = clock
        self._events = events
        self._block_size = block_size
        self._nothing = Found(0, tuple(Hit() for _ in groups))
        self._token_blocks: dict[Request, TokenBlocks] = {}

    # -- finding -----------------------------------------------------------------------------------

    def find(self, request: Request, swapped_firsts: Sequence[int] | None) -> Found:
        """What already holds tokens of a waiting request; changes nothing.

        `swapped_firsts`: if it is swapped out, the first page that it has in the host, by group.
        One token is always left to compute: a hit on the whole request would leave no query row,
        and so no logits to draw the next token from.
        """
        if swapped_firsts is not None:
            return self._find_swapped(request, swapped_firsts)
        if request.params.prompt_logprobs is not None:
            return self._nothing  # the logits of every position are needed
        found = self._nothing
        if self._groups[self._primary].prefix is not None:
            found = self.lookup(self._blocks_of(request), request.num_tokens - 1)
        return self._find_leader(request, found)

    def lookup(self, tokens: TokenBlocks, limit: int) -> Found:
        """The longest prefix of at most `limit` tokens that every group's prefix cache holds."""
        primary = self._groups[self._primary]
        assert primary.prefix is not None
        hit = None
        most = limit // self._block_size
        if primary.retention.keeps_all:
            hit = primary.prefix.lookup(tokens, limit)
            if len(self._groups) == 1:
                return Found(hit.num_tokens(self._block_size), (hit,))
            most = len(hit.blocks)
        others = [group for group in self._groups if hit is None or group is not primary]
        stop, before = most, -1
        while stop != before:  # what one group lacks shortens the prefix for all
            before = stop
            for group in others:
                stop = group.longest(tokens, stop)
        hits = []
        for group in self._groups:
            if hit is not None and group is primary:
                hits.append(Hit(hit.blocks[:stop]))
            else:
                first = group.retention.first_read(stop * self._block_size)
                hits.append(group.hit(tokens, first, stop))
        return Found(stop * self._block_size, tuple(hits))

    def _find_swapped(self, request: Request, firsts: Sequence[int]) -> Found:
        """The device pages that a swapped-out request need not load: in each group the first ones,
        up to one that is missing."""
        tokens = request.num_computed_tokens
        scored = request.params.prompt_logprobs is not None
        if scored or self._groups[self._primary].prefix is None:
            return Found(tokens, tuple(Hit(first=first) for first in firsts))
        blocks, hits = self._blocks_of(request), []
        for index, (group, first) in enumerate(zip(self._groups, firsts, strict=True)):
            assert group.prefix is not None
            if index == self._primary and group.retention.keeps_all:
                hits.append(group.prefix.lookup(blocks, tokens))
            else:
                hits.append(group.hit(blocks, first, tokens // self._block_size))
        return Found(tokens, tuple(hits))

    def _find_leader(self, request: Request, found: Found) -> Found:
        """What another sample of the same prompt has computed of it, if that is more."""
        leader = request.leader
        if leader is None or leader not in self._groups[0].tables:
            return found
        tokens = min(leader.num_computed_tokens, request.num_prompt_tokens - 1)
        if tokens <= found.num_tokens:
            return found
        full, rest = divmod(tokens, self._block_size)
        hits = []
        for group in self._groups:
            table, first = group.tables[leader], group.retention.first_read(tokens)
            if first < table.first:
                return found  # it has gone on, and has left the end of the prompt behind
            held = table.blocks[first - table.first : full - table.first]
            partial = table.blocks[full - table.first] if rest else None
            hits.append(Hit(held, partial, rest, first=first))
        return Found(tokens, tuple(hits))

    # -- taking ------------------------------------------------------------------------------------

    def take(self, request: Request, found: Found) -> int:
        """Put what was found into the request's block tables: share full pages, copy a partial one,
        load pages of lower tiers. Returns how many tokens they hold, which is less than was found
        if there is no page for the copy, or a page of a lower tier is damaged."""
        groups, hits = self._groups, found.hits
        partial = hits[self._primary].partial_tokens
        if partial and len(groups) > 1 and not all(group.pool.num_available for group in groups):
            # Without its last part the prefix would be shorter, and a window begin earlier.
            found, hits, partial = self._nothing, self._nothing.hits, 0
        for group, hit in zip(groups, hits, strict=True):
            group.share(group.tables[request], hit)
        num_tokens = found.num_tokens - partial - len(hits[self._primary].keys) * self._block_size
        if partial and self._copy_partial(request, hits):
            num_tokens += partial
        self._events.hit_tokens += num_tokens
        if hits[self._primary].keys:
            num_tokens += self._load(request, hits[self._primary])
        return num_tokens

    def _copy_partial(self, request: Request, hits: Sequence[Hit]) -> bool:
        """Copy the page that the prefix ends in, in every group; False if there is no page."""
        done = True
        for group, hit in zip(self._groups, hits, strict=True):
            assert hit.partial_block is not None
            source, pool = hit.partial_block, group.pool
            # Held during the copy: allocating a page for it might evict the source.
            pool.share(source)
            try:
                if not pool.num_available:
                    done = False
                    continue
                (target,) = pool.allocate(1)
                group.tables.extend(group.tables[request], [target])
                start = self._clock.now()
                group.store.copy([source], [target])
                self._events.copied_blocks += 1
                self._events.transfer_s += self._clock.now() - start
            finally:
                pool.release([source])
        return done

    def _load(self, request: Request, hit: Hit) -> int:
        """Load pages of lower tiers, which only an engine of one group has; returns their
        tokens."""
        (group,) = self._groups
        assert group.prefix is not None
        start, table = self._clock.now(), group.tables[request]
        group.prefix.touch(hit)
        first = len(table.blocks)
        blocks = group.pool.allocate(min(len(hit.keys), group.pool.num_available))
        group.tables.extend(table, blocks)
        loaded = group.prefix.load(hit, blocks)
        group.tables.shrink(table, first + loaded)
        self.enter(request, first, first + loaded)
        self._events.loaded_tokens += loaded * self._block_size
        self._events.transfer_s += self._clock.now() - start
        return loaded * self._block_size

    # -- entering ----------------------------------------------------------------------------------

    def enter(self, request: Request, first: int, stop: int) -> None:
        """Put full pages `first` to `stop - 1` of a request into every group's prefix index."""
        if first < stop:
            tokens = self._blocks_of(request)
            for group in self._groups:
                group.enter(tokens, request, first, stop)

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
