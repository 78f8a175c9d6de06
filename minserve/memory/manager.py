"""Gives pages to requests: admit, reserve before a step, commit after it, release at the end.

The scheduler decides which request is preempted; the store holds the contents of pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from minserve.batch import ForwardBatch
from minserve.clock import Clock, WallClock
from minserve.memory.events import NOTHING, MemoryEvents
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.layout import Reservation
from minserve.memory.pins import Pins
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.cache import PrefixCache
from minserve.memory.prefix.index import PrefixIndex
from minserve.memory.reuse import Found, Reuse
from minserve.memory.storage.store import BlockStore, NoStore
from minserve.memory.tables import BlockTable, BlockTables
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.host import HostTier
from minserve.memory.tiers.swap import SwappedRequests
from minserve.memory.use import MemoryUse, measure_use
from minserve.request import Request


class KVManager:
    """KV memory of one engine (PagedAttention, Kwon et al., arXiv 2309.06180).

    `admit(request)` finds tokens that are already computed, `reserve(request, n)` makes room for n
    more tokens, `commit(request, kept)` keeps the first `kept` of them and returns the other pages.
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
        store: BlockStore | None = None,
        costs: ResumeCosts | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.host = host
        self.costs = ResumeCosts() if costs is None else costs
        self._tables = BlockTables(self.pool, block_size, max_num_seqs, blocks_per_request)
        self._reservation = reservation
        self._store = NoStore() if store is None else store
        self._clock = WallClock() if clock is None else clock
        self._events = MemoryEvents()
        self.prefix = (
            PrefixCache(self.pool, index, host, self.costs, self._clock, self._events)
            if index is not None
            else None
        )
        self._reuse = Reuse(
            self.pool, self._tables, self.prefix, self._store, self._clock, self._events, block_size
        )
        self._swapped = SwappedRequests(host)
        self._pins = Pins(self.pool)
        self._noted: set[str] = set()

    @property
    def tables(self) -> npt.NDArray[np.int32]:
        """`[max_num_seqs, blocks]`: the row of a request lists its pages in order of position."""
        return self._tables.rows

    @property
    def capacity_tokens(self) -> int:
        """Tokens that a single request can keep if it is alone; pinned pages are not
        available to it."""
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

    # -- admission ---------------------------------------------------------------------------------

    def find(self, request: Request) -> Found:
        """Where the computed tokens of a waiting request are; changes nothing. An admission looks
        once and passes what it found to the methods below."""
        return self._reuse.find(request, request in self._swapped)

    def needed_blocks(
        self, request: Request, num_tokens: int | None = None, found: Found | None = None
    ) -> int:
        """Pages that a waiting request would take from the available ones for its first
        `num_tokens` (None: all it knows). If pages are reserved at admission: pages for all
        it may ever reach."""
        if self._reservation is not None:
            most = int(self._tables.rows.shape[1])  # no request outgrows its table or the pool
            return min(most, self.blocks_for(self._reservation(request)))
        found = self.find(request) if found is None else found
        shared = sum(1 for block in found.hit.blocks if self.pool.owners(block))
        return self.blocks_for(num_tokens or request.num_tokens) - shared

    def fits(
        self,
        request: Request,
        kept_back: int = 0,
        num_tokens: int | None = None,
        found: Found | None = None,
    ) -> bool:
        """May a waiting request be admitted, with `kept_back` pages left for other requests?"""
        needed = self.needed_blocks(request, num_tokens, found)
        if self._reservation is not None:
            return self.pool.find_hole(needed) is not None
        return needed + kept_back <= self.pool.num_available

    def admit(self, request: Request, found: Found | None = None) -> int:
        """Give the request a block table and the pages of its computed tokens; counts these tokens
        as computed, and returns their number. If it raises, the request has no table, as before."""
        self._tables.close(request)  # returns pages of an interrupted admission
        table = self._tables.open(request)
        try:
            tokens = self._fill(request, table, found)
        except BaseException:
            self._tables.close(request)
            raise
        request.num_computed_tokens = tokens
        return tokens

    def _fill(self, request: Request, table: BlockTable, found: Found | None) -> int:
        if self._reservation is not None:
            self._admit_contiguous(request, table)
            return 0
        found = self.find(request) if found is None else found
        if request in self._swapped:
            self._swap_in(request, table, found.hit.blocks)
            return found.num_tokens
        return self._reuse.take(request, table, found.hit)

    def _admit_contiguous(self, request: Request, table: BlockTable) -> None:
        needed = self.needed_blocks(request)
        first = self.pool.find_hole(needed)
        if first is None:
            raise IntegrityError(f"no {needed} neighbouring pages are free: ask fits() first")
        self._tables.extend(table, self.pool.take(first, needed))

    # -- steps -------------------------------------------------------------------------------------

    def missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Pages the request still needs to hold `num_tokens` in total."""
        table = self._tables.get(request)
        return self.blocks_for(num_tokens) - (len(table.blocks) if table is not None else 0)

    def returned_blocks(self, request: Request) -> int:
        """Pages that become available if this request loses its own: those it does not share."""
        table = self._tables.get(request)
        blocks = table.blocks if table is not None else []
        return sum(1 for block in blocks if self.pool.owners(block) == 1)

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` after the computed ones; False if there are too few pages."""
        blocks = -(-(request.num_computed_tokens + num_tokens) // self.block_size)
        table = self._tables[request]
        needed = blocks - len(table.blocks)
        if needed <= 0:
            return True
        if needed > self.pool.num_available:
            return False
        self._tables.extend(table, self.pool.allocate(needed))
        return True

    def commit(self, request: Request, kept: int, ahead: int = 0) -> None:
        """Count the first `kept` of the reserved tokens as computed and return surplus pages,
        except those of the next `ahead` tokens, which are in flight. Full pages enter the prefix
        index; if it has a page with the same content, the block table is changed to that page."""
        table, before = self._tables[request], request.num_computed_tokens
        tokens = before + kept
        needed = -(-(tokens + ahead) // self.block_size)
        if needed > len(table.blocks):
            raise IntegrityError(
                f"request {request.request_id} commits {kept} tokens it did not reserve"
            )
        request.num_computed_tokens = tokens
        if needed < len(table.blocks) and self._reservation is None:
            self._tables.shrink(table, needed)
        if self.prefix is not None:
            self._reuse.enter(request, table, before // self.block_size, tokens // self.block_size)

    def compact(self, request: Request, kept: Sequence[int]) -> None:
        """Move the reserved tokens `kept`, counted from the first one, so that they directly follow
        the committed ones: the accepted branch of a tree lies among other branches."""
        table, first = self._tables[request], request.num_computed_tokens
        sources = self._tables.slots(table, [first + place for place in kept])
        self._store.move(sources, self._tables.slots(table, range(first, first + len(kept))))

    def forget(self, request: Request) -> None:
        """Free all pages; the request keeps an empty row in the block tables and computes from its
        first token again."""
        self._tables.shrink(self._tables[request], 0)
        request.num_computed_tokens = 0

    def release(self, request: Request) -> None:
        """Free everything the request has, in every tier; it may have nothing."""
        self._tables.close(request)
        self._reuse.forget(request)
        self._swapped.drop(request)

    # -- swapping ----------------------------------------------------------------------------------

    def swap_out(self, request: Request) -> bool:
        """Move a running request's pages to the host and close its block table. False, with nothing
        changed, if the host has no room."""
        blocks = self._tables[request].blocks[: self.blocks_for(request.num_computed_tokens)]
        if self.host is None or not blocks:
            return False
        start = self._clock.now()
        saved = self._swapped.save(request, blocks)
        self._events.transfer_s += self._clock.now() - start
        if saved:
            self._events.swapped_out_blocks += len(blocks)
            self._tables.close(request)
        return saved

    def _swap_in(self, request: Request, table: BlockTable, shared: Sequence[int]) -> None:
        """Bring a swapped-out request back. Pages that the prefix cache still has on the device are
        `shared`; the others are loaded."""
        start = self._clock.now()
        for block in shared:
            self.pool.share(block)
        self._tables.extend(table, shared)
        loaded = self.pool.allocate(self._swapped.num_slots(request) - len(shared))
        self._tables.extend(table, loaded)
        self._swapped.restore(request, len(shared), loaded)
        if self.prefix is not None:
            full = request.num_computed_tokens // self.block_size
            self._reuse.enter(request, table, len(shared), full)
        self._events.swapped_in_blocks += len(loaded)
        self._events.transfer_s += self._clock.now() - start

    # -- pins --------------------------------------------------------------------------------------

    def pin(self, token_ids: Sequence[int], namespace: Sequence[str] = ()) -> tuple[int, int]:
        """Keep the computed full pages of a prefix on the device until `unpin`. Returns a handle
        and the number of pinned tokens, which may be 0. Needs a prefix index."""
        if self.prefix is None:
            raise ValueError("pinning needs memory.prefix_cache='hash' or 'radix'; it is off")
        tokens = TokenBlocks(root_key(namespace), list(token_ids), self.block_size)
        blocks = self.prefix.lookup(tokens, len(token_ids)).blocks
        return self._pins.add(blocks), len(blocks) * self.block_size

    def unpin(self, handle: int) -> None:
        """Allow pinned pages to be evicted again. Raises KeyError for an unknown handle."""
        self._pins.remove(handle)

    def check_pin(self, handle: int) -> None:
        """Raise KeyError for a handle that is unknown or already unpinned."""
        if handle not in self._pins:
            raise KeyError(handle)

    def holds_pin(self, handle: int) -> bool:
        """True while the handle's pages are pinned."""
        return self._pins.holds(handle)

    @property
    def num_pinned(self) -> int:
        """Pages that pins hold; a page of two pins counts once."""
        return self._pins.num_blocks

    # -- the whole ---------------------------------------------------------------------------------

    def submitted(self, batch: ForwardBatch) -> None:
        """Report that a batch over these pages was started: copies wait for it."""
        self._store.submitted(batch)

    def failed(self) -> None:
        """Report that a batch could not be started; a part of it may still run."""
        self._store.failed()

    def collected(self) -> None:
        """Report that the oldest started batch has ended."""
        self._store.collected()

    def take_notes(self) -> list[str]:
        """Failures of the disk tier that the engine recovered from, as sentences; each once."""
        disk = self.host.disk if self.host is not None else None
        if disk is None or disk.failure is None or disk.failure in self._noted:
            return []
        self._noted.add(disk.failure)
        return [disk.failure]

    def take_events(self) -> MemoryEvents:
        """The events since the last call."""
        events = self._events
        if not events:
            return NOTHING
        taken = MemoryEvents(*(getattr(events, name) for name in MemoryEvents.__slots__))
        for name in MemoryEvents.__slots__:
            setattr(events, name, type(getattr(events, name))())
        return taken

    def use(self) -> MemoryUse:
        """Pages and tokens now."""
        return measure_use(self.pool, self._tables, self._pins, self.block_size)

    def stranded_slots(self, request: Request) -> int:
        """External fragmentation: free slots that a waiting request cannot use, because its pages
        must be neighbours and no hole is large enough. Always 0 in paged memory."""
        if self._reservation is None or self.fits(request):
            return 0
        return self.pool.num_free * self.block_size

    def requests(self) -> set[Request]:
        """The requests that hold pages, on the device or swapped out."""
        return self._tables.requests() | self._swapped.requests()

    def reset(self) -> None:
        """Free every page; nothing is cached, pinned or swapped out. Used when an error left the
        state inconsistent and the engine starts over. No request may be live."""
        self.pool.reset()
        self._tables.reset()
        self._reuse.reset()
        self._swapped.reset()
        self._pins.reset()
        if self.prefix is not None:
            self.prefix.reset()
        elif self.host is not None:
            self.host.reset()
        self._store.failed()

    def close(self) -> None:
        """Delete the pages that the disk tier keeps in files."""
        if self.host is not None:
            self.host.close()

    def check(self) -> None:
        """Verify every invariant. Raises IntegrityError."""
        self.pool.check([*self._tables.holders(), *self._pins.holders()])
        self._tables.check()
        if self.prefix is not None:
            self.prefix.check()
        if self.host is not None:
            self.host.check(self._swapped.holders())
