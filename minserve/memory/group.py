"""A cache group of an engine: its own pages, block tables and index, under its own retention.

Knows which request holds which of its pages, and nothing about the other groups.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.groups import retention_of
from minserve.memory.groups.tables import BlockTable, BlockTables
from minserve.memory.keys import TokenBlocks
from minserve.memory.plan import GroupPlan
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.cache import Hit, PrefixCache
from minserve.memory.prefix.index import HashIndex, PrefixIndex
from minserve.memory.storage.exported import ExportedGroup, cut, joined
from minserve.memory.storage.store import BlockStore, PageStore
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.disk import DiskTier
from minserve.memory.tiers.host import HostTier
from minserve.request import Request


class PageGroup:
    """The pages of one `GroupPlan`.

    A number of blocks of a request is counted from its first token, whether the leading ones are
    still held or not.
    """

    def __init__(
        self,
        plan: GroupPlan,
        block_size: int,
        blocks_per_request: int,
        store: BlockStore,
        disk: DiskTier | None,
    ) -> None:
        self.plan = plan
        self.retention = retention_of(plan.group.spec, block_size)
        self.pool = BlockPool(plan.num_blocks)
        self.block_bytes = plan.block_bytes
        self.slot_bytes = plan.block_bytes // block_size
        self.store = store
        slots = plan.num_host_slots
        self.host = HostTier(slots, store, disk) if slots else None
        self.prefix: PrefixCache | None = None
        self._block_size = block_size
        self._blocks_per_request = blocks_per_request
        self._most = min(plan.most_blocks or blocks_per_request, blocks_per_request)

    def open_tables(self, max_num_seqs: int, width: int) -> None:
        """Make the block tables: `width` pages for each of `max_num_seqs` requests."""
        self.tables = BlockTables(self.pool, self._block_size, max_num_seqs, width)

    def open_prefix(
        self,
        index: PrefixIndex,
        host: HostTier | None,
        costs: ResumeCosts,
        clock: Clock,
        events: MemoryEvents,
    ) -> None:
        """Keep full pages of requests under their tokens from now on; `host` takes evicted ones."""
        self.prefix = PrefixCache(self.pool, index, host, costs, clock, events)

    def reach(self, num_blocks: int) -> int:
        """The longest request, in pages, that can be served alone with `num_blocks` of them."""
        return self._blocks_per_request if num_blocks >= self._most else num_blocks

    def needed(self, first: int, num_blocks: int) -> int:
        """The most pages that a request will hold until it has computed `num_blocks`, if it begins
        after the first `first`."""
        return min(num_blocks - first, self._most)

    # -- a request's pages -------------------------------------------------------------------------

    def missing(self, request: Request, num_blocks: int) -> int:
        """Pages that an admitted request still has to take to have `num_blocks`; 0 or less if it
        has them."""
        table = self.tables.by_request[request]
        return num_blocks - table.first - len(table.blocks)

    def reserve(self, request: Request, num_blocks: int) -> None:
        """Take pages until the request has `num_blocks`; the caller has checked that there are
        enough."""
        missing = self.missing(request, num_blocks)
        if missing > 0:
            self.tables.extend(self.tables.by_request[request], self.pool.allocate(missing))

    def take_neighbours(self, request: Request, count: int) -> None:
        """Take `count` pages that lie side by side, for contiguous memory."""
        first = self.pool.find_hole(count)
        if first is None:
            raise IntegrityError(f"no {count} neighbouring pages are free: ask fits() first")
        self.tables.extend(self.tables[request], self.pool.take(first, count))

    def free_unread(self, request: Request) -> None:
        """Free the leading pages that no later token of the request reads."""
        table = self.tables.by_request[request]
        first = self.retention.first_kept(request.num_computed_tokens)
        if first > table.first:
            self.tables.drop_front(table, first)

    def compact(self, request: Request, kept: Sequence[int]) -> None:
        """See `KVManager.compact`."""
        table, first = self.tables.by_request[request], request.num_computed_tokens
        sources = self.tables.slots(table, [first + place for place in kept])
        self.store.move(sources, self.tables.slots(table, range(first, first + len(kept))))

    def share(self, table: BlockTable, hit: Hit) -> None:
        """Let an empty block table begin with the hit's full pages."""
        for block in hit.blocks:
            self.pool.share(block)
        table.first = hit.first
        self.tables.extend(table, hit.blocks)

    def committed(self, request: Request) -> tuple[int, list[int]]:
        """Index of the first page the request holds, and its pages with computed tokens."""
        table = self.tables.by_request[request]
        stop = -(-request.num_computed_tokens // self._block_size)
        return table.first, table.blocks[: stop - table.first]

    # -- between engines ---------------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens`."""
        return -(-num_tokens // self._block_size)

    def exported(
        self, first: int, first_token: int, num_tokens: int, pages: Sequence[Tensor]
    ) -> ExportedGroup:
        """A request's computed tokens from `first_token` on, from the contents of its pages, of
        which `first` is the first."""
        start = first * self._block_size
        begin = max(start, first_token)
        tokens = joined(pages, begin - start, num_tokens - start)
        return ExportedGroup(self.plan.group, begin, tokens)

    def fill(self, table: BlockTable, first: int, stop: int, tokens: ExportedGroup) -> None:
        """Write tokens of another engine into pages `first` to `stop - 1` of a request."""
        blocks, size = table.blocks[first - table.first : stop - table.first], self._block_size
        self.store.write(blocks, cut(tokens.tensors, tokens.first, first * size, len(blocks), size))

    # -- prefixes ----------------------------------------------------------------------------------

    def enter(self, tokens: TokenBlocks, request: Request, first: int, stop: int) -> None:
        """Put full pages `first` to `stop - 1` of a request into the prefix index. If the index
        already has a page with the same content, the block table is changed to that page."""
        assert self.prefix is not None
        table = self.tables.by_request[request]
        skipped, blocks = table.first, table.blocks
        begin = max(skipped, self.blocks_for(table.first_token))
        for index in range(max(first, begin), stop):
            mine = blocks[index - skipped]
            parent = blocks[index - skipped - 1] if index > begin else None
            canonical = self.prefix.enter(tokens, index, parent, mine)
            if canonical != mine:
                self.tables.replace(table, index, canonical)

    def longest(self, tokens: TokenBlocks, most: int) -> int:
        """The longest prefix, in pages and at most `most`, of which the index has every page that a
        token after it reads."""
        stop = at = most
        while stop:
            at, first = min(at, stop), self.retention.first_read(stop * self._block_size)
            while at > first and self._find(tokens, at - 1) is not None:
                at -= 1
            if at <= first:
                break
            stop = at - 1  # page `at - 1` is missing, and so every prefix is that reads it
        return stop

    def first_pinned(self, num_blocks: int) -> int:
        """The first page that a pin of `num_blocks` pages keeps. A prompt of just these tokens
        computes the last one again, so it reads what a prefix of one page less needs."""
        return self.retention.first_read(max(0, num_blocks - 1) * self._block_size)

    def hit(self, tokens: TokenBlocks, first: int, stop: int) -> Hit:
        """The pages that the index has of `first` to `stop - 1`, up to one that is missing."""
        blocks = []
        for index in range(first, stop):
            block = self._find(tokens, index)
            if block is None:
                break
            blocks.append(block)
        return Hit(blocks, first=first)

    def _find(self, tokens: TokenBlocks, index: int) -> int | None:
        assert self.prefix is not None and isinstance(self.prefix.index, HashIndex)
        return self.prefix.index.find(tokens.key(index))

    # -- the whole ---------------------------------------------------------------------------------

    def reset(self) -> None:
        """Free every page and forget every request."""
        self.pool.reset()
        self.tables.reset()
        if self.prefix is not None:
            self.prefix.reset()
        if self.host is not None:
            self.host.reset()

    def check_beside(self, other: PageGroup) -> None:
        """Verify that another group has the same requests in the same rows, each with at least as
        many pages; raises IntegrityError."""
        if self.tables.by_request.keys() != other.tables.by_request.keys():
            raise IntegrityError("a request has no block table in one of the cache groups")
        for request, table in self.tables.by_request.items():
            beside = other.tables.by_request[request]
            if (
                beside.row != table.row
                or other.missing(request, table.first + len(table.blocks)) > 0
            ):
                raise IntegrityError(f"{request.request_id} lacks pages in a cache group")

    def check(self, pinned: list[list[int]], swapped: list[list[int]]) -> None:
        """Verify every invariant of this group; raises IntegrityError with the first that fails.
        `pinned` pages and host slots of `swapped`-out requests are held besides the tables."""
        self.pool.check([*self.tables.holders(), *pinned])
        self.tables.check()
        for request, table in self.tables.by_request.items():
            if table.first > self.retention.first_read(request.num_computed_tokens):
                raise IntegrityError(f"{request.request_id} has freed pages that it still reads")
        if self.prefix is not None:
            self.prefix.check()
        if self.host is not None:
            self.host.check(swapped)


def open_groups(
    plans: Sequence[GroupPlan],
    primary: int,
    block_size: int,
    max_num_seqs: int,
    blocks_per_request: int,
    store: PageStore,
    disk: DiskTier | None,
) -> tuple[PageGroup, ...]:
    """The groups of an engine, with block tables as wide as the longest request that all of them
    can serve. The disk lies below the primary group's host slots."""
    groups = tuple(
        PageGroup(
            plan,
            block_size,
            blocks_per_request,
            store.group(number),
            disk if number == primary else None,
        )
        for number, plan in enumerate(plans)
    )
    width = min(group.reach(group.pool.num_blocks) for group in groups)
    for group in groups:
        group.open_tables(max_num_seqs, width)
    return groups
