"""Pages to requests: admit, reserve before a step, commit after it, release at the end.

Who is to be preempted is the scheduler's business; what pages contain is the store's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minserve.batch import ForwardBatch
from minserve.clock import Clock, WallClock
from minserve.memory.events import NOTHING, MemoryEvents
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.layout import Reservation
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.cache import Hit, PrefixCache
from minserve.memory.prefix.index import PrefixIndex
from minserve.memory.storage.store import NoStore, PageStore
from minserve.memory.tables import BlockTable, BlockTables
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.host import HostTier
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Pages and token slots at one moment; what several requests share is counted once."""

    blocks_total: int
    blocks_used: int
    """Pages with an owner."""
    blocks_cached: int
    """Pages nobody owns, kept for a prefix hit."""
    kv_tokens: int
    """Tokens committed: their keys and values are valid."""
    reserved_slots: int
    """Slots of owned pages that their request may still fill."""
    internal_slots: int
    """Slots of owned pages beyond anything their request may reach."""


class KVManager:
    """KV memory of one engine (PagedAttention, Kwon et al., arXiv 2309.06180).

    `admit(request)` finds what is already computed, `reserve(request, n)` makes room for n more
    tokens, `commit(request, kept)` keeps the first `kept` of them and returns what is not needed.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        blocks_per_request: int,
        *,
        reservation: Reservation | None = None,
        index: PrefixIndex | None = None,
        host: HostTier | None = None,
        store: PageStore | None = None,
        costs: ResumeCosts | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.host = host
        self.costs = costs or ResumeCosts()
        self._tables = BlockTables(self.pool, block_size, max_num_seqs, blocks_per_request)
        self._reservation = reservation
        self._store = store or NoStore()
        self._clock = clock or WallClock()
        self._events = MemoryEvents()
        self.prefix = (
            PrefixCache(self.pool, index, host, self.costs, self._clock, self._events)
            if index is not None
            else None
        )
        self._token_blocks: dict[Request, TokenBlocks] = {}
        self._swapped: dict[Request, tuple[list[int], int]] = {}
        self._pins: dict[int, list[int]] = {}
        self._num_pins = 0
        self._noted: set[str] = set()

    @property
    def tables(self) -> npt.NDArray[np.int32]:
        """`[max_num_seqs, blocks]`: the row of a request lists its pages in order of position."""
        return self._tables.rows

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one request alone can keep, none of them pinned."""
        blocks = min(int(self._tables.rows.shape[1]), self.pool.num_blocks - self.num_pinned)
        return blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def rows_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The requests' rows in `tables`."""
        return self._tables.rows_of(requests)

    def blocks_of(self, request: Request) -> tuple[int, ...]:
        """The request's pages, in order of position."""
        table = self._tables.get(request)
        return tuple(table.blocks) if table is not None else ()

    def tokens_of(self, request: Request) -> int | None:
        """Tokens that the request's pages hold; None where it has no block table."""
        table = self._tables.get(request)
        return table.tokens if table is not None else None

    # -- admission ---------------------------------------------------------------------------------

    def computed_tokens(self, request: Request) -> int:
        """Tokens of a waiting request that `admit` is expected to find already computed."""
        if request in self._swapped:
            return self._swapped[request][1]
        return self._find(request).num_tokens(self.block_size)

    def needed_blocks(self, request: Request, num_tokens: int | None = None) -> int:
        """Pages that a waiting request would take out of the available ones for its first
        `num_tokens` (None: all it knows); where pages are reserved at admission, for all it may
        ever reach."""
        if self._reservation is not None:
            most = int(self._tables.rows.shape[1])  # no request outgrows its table or the pool
            return min(most, self.blocks_for(self._reservation(request)))
        shared = sum(1 for block in self._find(request).blocks if self.pool.owners(block))
        return self.blocks_for(num_tokens or request.num_tokens) - shared

    def fits(self, request: Request, kept_back: int = 0, num_tokens: int | None = None) -> bool:
        """May a waiting request be admitted, with `kept_back` pages left for others?"""
        needed = self.needed_blocks(request, num_tokens)
        if self._reservation is not None:
            return self.pool.find_hole(needed) is not None
        return needed + kept_back <= self.pool.num_available

    def admit(self, request: Request) -> int:
        """Give the request a block table and what is already computed of it; returns how many
        tokens that is. What it raises leaves the request as it was, without a table."""
        self._tables.close(request)  # what an interrupted admission took
        table = self._tables.open(request)
        try:
            if self._reservation is not None:
                self._admit_contiguous(request, table)
            elif request in self._swapped:
                self._swap_in(request, table)
            else:
                self._share(request, table, self._find(request))
        except BaseException:
            self._tables.close(request)
            raise
        return table.tokens

    def _find(self, request: Request) -> Hit:
        """What exists of a waiting request's tokens. One token is always left to compute: a hit
        on the whole request would leave no query to draw the next token from."""
        if request.params.prompt_logprobs is not None:
            return Hit()  # every position's logits are wanted
        limit = request.num_tokens - 1
        if request in self._swapped:
            limit = self._swapped[request][1]
        hit = self.prefix.lookup(self._token_blocks_of(request), limit) if self.prefix else Hit()
        leader = self._tables.get(request.leader)
        if leader is None or request in self._swapped:
            return hit
        # Another sample of the same prompt: what it computed of the prompt is ours too.
        tokens = min(leader.tokens, request.num_prompt_tokens - 1)
        if tokens <= hit.num_tokens(self.block_size):
            return hit
        full, rest = divmod(tokens, self.block_size)
        return Hit(leader.blocks[:full], leader.blocks[full] if rest else None, rest)

    def _token_blocks_of(self, request: Request) -> TokenBlocks:
        tokens = self._token_blocks.get(request)
        if tokens is None:
            root = root_key(request.cache_namespace)
            tokens = TokenBlocks(root, request.token_ids, self.block_size)
            self._token_blocks[request] = tokens
        return tokens

    def _share(self, request: Request, table: BlockTable, hit: Hit) -> None:
        """Take the hit's pages: share full ones, copy a part of one, load what lies below."""
        for block in hit.blocks:
            self.pool.share(block)
        self._tables.extend(table, hit.blocks)
        table.tokens = len(hit.blocks) * self.block_size
        source = hit.partial_block
        if source is not None:
            # Shared while room is made for the copy: otherwise that might evict it.
            self.pool.share(source)
            try:
                if self.pool.num_available:
                    self._tables.extend(table, self.pool.allocate(1))
                    self._copy(source, table.blocks[-1])
                    table.tokens += hit.partial_tokens
            finally:
                self.pool.release([source])
        self._events.hit_tokens += table.tokens
        if hit.keys:
            self._load(request, table, hit)

    def _load(self, request: Request, table: BlockTable, hit: Hit) -> None:
        assert self.prefix is not None
        start = self._clock.now()
        self.prefix.touch(hit)
        first = len(table.blocks)
        blocks = self.pool.allocate(min(len(hit.keys), self.pool.num_available))
        self._tables.extend(table, blocks)
        loaded = self.prefix.load(hit, blocks)
        self._tables.shrink(table, first + loaded)
        table.tokens += loaded * self.block_size
        self._enter(request, table, first, first + loaded)
        self._events.loaded_tokens += loaded * self.block_size
        self._events.transfer_s += self._clock.now() - start

    def _copy(self, source: int, target: int) -> None:
        start = self._clock.now()
        self._store.copy([source], [target])
        self._events.copied_blocks += 1
        self._events.transfer_s += self._clock.now() - start

    def _admit_contiguous(self, request: Request, table: BlockTable) -> None:
        needed = self.needed_blocks(request)
        first = self.pool.find_hole(needed)
        if first is None:
            raise IntegrityError(f"no {needed} neighbouring pages are free: ask fits() first")
        self._tables.extend(table, self.pool.take(first, needed))

    # -- steps -------------------------------------------------------------------------------------

    def missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Pages the request still lacks to hold `num_tokens` in total."""
        table = self._tables.get(request)
        return self.blocks_for(num_tokens) - (len(table.blocks) if table is not None else 0)

    def returned_blocks(self, request: Request) -> int:
        """Pages that become available when this request loses its own: those it does not share."""
        table = self._tables.get(request)
        blocks = table.blocks if table is not None else []
        return sum(1 for block in blocks if self.pool.owners(block) == 1)

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` beyond the committed ones; False when pages are short."""
        table = self._tables[request]
        needed = -(-(table.tokens + num_tokens) // self.block_size) - len(table.blocks)
        if needed <= 0:
            return True
        if needed > self.pool.num_available:
            return False
        self._tables.extend(table, self.pool.allocate(needed))
        return True

    def commit(self, request: Request, kept: int, ahead: int = 0) -> None:
        """Keep the first `kept` tokens of what was reserved and return surplus pages, but for
        those of the next `ahead` tokens, which are in flight. Pages that became full enter the
        prefix index; where it already has their content, the request's block table is rewritten to
        the page it has."""
        table = self._tables[request]
        before, tokens = table.tokens, table.tokens + kept
        needed = -(-(tokens + ahead) // self.block_size)
        if needed > len(table.blocks):
            raise IntegrityError(
                f"request {request.request_id} commits {kept} tokens it did not reserve"
            )
        table.tokens = tokens
        if needed < len(table.blocks) and self._reservation is None:
            self._tables.shrink(table, needed)
        if self.prefix is not None:
            self._enter(request, table, before // self.block_size, tokens // self.block_size)

    def _enter(self, request: Request, table: BlockTable, first: int, stop: int) -> None:
        """Put full pages `first` to `stop - 1` of a request into the prefix index."""
        assert self.prefix is not None
        blocks = table.blocks
        for index in range(first, stop):
            parent = blocks[index - 1] if index else None
            mine = blocks[index]
            canonical = self.prefix.enter(self._token_blocks_of(request), index, parent, mine)
            if canonical != mine:
                self._tables.replace(table, index, canonical)

    def forget(self, request: Request) -> None:
        """Return all pages but keep the block table: the request computes from its start again."""
        table = self._tables[request]
        self._tables.shrink(table, 0)
        table.tokens = 0

    def release(self, request: Request) -> None:
        """Return everything the request has, in every tier. One that has nothing is left alone."""
        self._tables.close(request)
        self._token_blocks.pop(request, None)
        slots, _ = self._swapped.pop(request, ((), 0))
        if slots and self.host is not None:
            self.host.release(slots)

    # -- swapping ----------------------------------------------------------------------------------

    def swap_out(self, request: Request) -> bool:
        """Move a running request's pages to the host and take its block table; False, with nothing
        changed, where the host has no room."""
        table = self._tables[request]
        blocks = table.blocks[: self.blocks_for(table.tokens)]
        if self.host is None or not blocks:
            return False
        start = self._clock.now()
        slots = self.host.swap_out(blocks)
        self._events.transfer_s += self._clock.now() - start
        if slots is None:
            return False
        self._swapped[request] = (slots, table.tokens)
        self._events.swapped_out_blocks += len(slots)
        self._tables.close(request)
        return True

    def _swap_in(self, request: Request, table: BlockTable) -> None:
        """Bring a swapped-out request back. Pages that the prefix cache still has on the device
        are shared; the others are loaded."""
        slots, tokens = self._swapped[request]
        assert self.host is not None
        start = self._clock.now()
        shared = self._find(request).blocks
        for block in shared:
            self.pool.share(block)
        self._tables.extend(table, shared)
        loaded = self.pool.allocate(len(slots) - len(shared))
        self._tables.extend(table, loaded)
        self.host.load(slots[len(shared) :], loaded)
        del self._swapped[request]
        self.host.release(slots)
        table.tokens = tokens
        if self.prefix is not None:
            self._enter(request, table, len(shared), tokens // self.block_size)
        self._events.swapped_in_blocks += len(loaded)
        self._events.transfer_s += self._clock.now() - start

    # -- the whole ---------------------------------------------------------------------------------

    def pin(self, token_ids: Sequence[int], namespace: Sequence[str] = ()) -> tuple[int, int]:
        """Keep the computed full pages of a prefix on the device until `unpin`. Returns a handle
        and the number of tokens pinned, which may be 0. Needs a prefix index."""
        if self.prefix is None:
            raise ValueError("pinning needs memory.prefix_cache='hash' or 'radix'; it is off")
        tokens = TokenBlocks(root_key(namespace), list(token_ids), self.block_size)
        blocks = self.prefix.lookup(tokens, len(token_ids)).blocks
        for block in blocks:
            self.pool.share(block)
        self._num_pins += 1
        self._pins[self._num_pins] = blocks
        return self._num_pins, len(blocks) * self.block_size

    def unpin(self, handle: int) -> None:
        """Let pinned pages be evicted again. An unknown handle is a KeyError."""
        self.pool.release(reversed(self._pins.pop(handle)))

    def check_pin(self, handle: int) -> None:
        """Raise KeyError for a handle that is unknown, or unpinned already."""
        if handle not in self._pins:
            raise KeyError(handle)

    def holds_pin(self, handle: int) -> bool:
        """True while the handle's pages are pinned."""
        return bool(self._pins.get(handle))

    @property
    def num_pinned(self) -> int:
        """Pages that pins hold; one that two hold counts once."""
        return len({block for blocks in self._pins.values() for block in blocks})

    def submitted(self, batch: ForwardBatch) -> None:
        """A batch over these pages was started: what is moved meanwhile must not meet it."""
        self._store.submitted(batch)

    def failed(self) -> None:
        """A batch could not be started; what it began may still run."""
        self._store.failed()

    def collected(self) -> None:
        """The oldest batch started has ended."""
        self._store.collected()

    def take_notes(self) -> list[str]:
        """Sentences about what went wrong below and was got over, each once."""
        disk = self.host.disk if self.host is not None else None
        if disk is None or disk.failure is None or disk.failure in self._noted:
            return []
        self._noted.add(disk.failure)
        return [disk.failure]

    def take_events(self) -> MemoryEvents:
        """What happened since the last call."""
        events = self._events
        if not events:
            return NOTHING
        taken = MemoryEvents(*(getattr(events, name) for name in MemoryEvents.__slots__))
        for name in MemoryEvents.__slots__:
            setattr(events, name, type(getattr(events, name))())
        return taken

    def use(self) -> MemoryUse:
        """Pages and tokens now."""
        pool, size = self.pool, self.block_size
        held_blocks, held_tokens = self._tables.totals()
        for pinned in self._pins.values():
            held_blocks += len(pinned)
            held_tokens += len(pinned) * size
        # A page that several hold is full, and was counted once for each of them.
        shared_slots = (held_blocks - pool.num_owned) * size
        kv_tokens = held_tokens - shared_slots
        open_slots = pool.num_owned * size - kv_tokens
        return MemoryUse(
            blocks_total=pool.num_blocks,
            blocks_used=pool.num_owned,
            blocks_cached=pool.num_cached,
            kv_tokens=kv_tokens,
            reserved_slots=open_slots - self._tables.internal_slots,
            internal_slots=self._tables.internal_slots,
        )

    def stranded_slots(self, request: Request) -> int:
        """External fragmentation: free slots that a waiting request cannot use, because its pages
        must be neighbours and no hole is large enough. Always 0 in paged memory."""
        if self._reservation is None or self.fits(request):
            return 0
        return self.pool.num_free * self.block_size

    def requests(self) -> set[Request]:
        """The requests that hold pages, on the device or swapped out."""
        return self._tables.requests() | self._swapped.keys()

    def reset(self) -> None:
        """Every page is free and nothing is cached, pinned or swapped out, whatever was before: how
        an engine goes on whose books no longer add up. No request may be live."""
        self.pool.reset()
        self._tables.reset()
        self._token_blocks.clear()
        self._swapped.clear()
        self._pins = {handle: [] for handle in self._pins}
        if self.prefix is not None:
            self.prefix.reset()
        elif self.host is not None:
            self.host.reset()
        self._store.failed()

    def close(self) -> None:
        """Delete what lower tiers keep on disk."""
        if self.host is not None:
            self.host.close()

    def check(self) -> None:
        """Verify every invariant; raises IntegrityError with the first one that fails."""
        self.pool.check([*self._tables.holders(), *self._pins.values()])
        self._tables.check()
        if self.prefix is not None:
            self.prefix.check()
        if self.host is not None:
            self.host.check(slots for slots, _ in self._swapped.values())
