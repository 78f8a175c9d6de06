"""Gives pages to requests: admit, reserve before a step, commit after it, release at the end.

The scheduler decides which request is preempted; the store holds the contents of pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from minserve.batch import ForwardBatch
from minserve.clock import Clock, WallClock
from minserve.memory.away import AwayRequests
from minserve.memory.events import MemoryEvents
from minserve.memory.group import open_groups
from minserve.memory.layout import Reservation
from minserve.memory.pins import Pins
from minserve.memory.plan import GroupPlan, primary_of
from minserve.memory.pool import IntegrityError
from minserve.memory.prefix.index import HashIndex, PrefixIndex
from minserve.memory.reuse import Found, Reuse
from minserve.memory.storage.store import NoStore, PageStore
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.disk import DiskTier
from minserve.memory.use import MemoryUse, measure_use
from minserve.request import Request


class KVManager:
    """KV memory of one engine (PagedAttention, Kwon et al., arXiv 2309.06180).

    `admit(request)` finds tokens that are already computed, `reserve(request, n)` makes room for n
    more tokens, `commit(request, kept)` keeps the first `kept` of them and returns the other pages.
    Every cache group has its own pages; page counts are about the primary group (`plan`), beside
    which the others do not run short.
    """

    def __init__(
        self,
        plans: Sequence[GroupPlan],
        block_size: int,
        max_num_seqs: int,
        blocks_per_request: int,
        *,
        reservation: Reservation | None = None,
        index: PrefixIndex | None = None,
        disk: DiskTier | None = None,
        store: PageStore | None = None,
        costs: ResumeCosts | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`index`: that of the primary group; None: no prefix cache."""
        self.block_size = block_size
        self.costs = ResumeCosts() if costs is None else costs
        self._reservation = reservation
        self._store = NoStore() if store is None else store
        self._clock = WallClock() if clock is None else clock
        self._events = MemoryEvents()
        primary = self._primary_index = primary_of([plan.group for plan in plans])
        self.groups = open_groups(
            plans, primary, block_size, max_num_seqs, blocks_per_request, self._store, disk
        )
        """In the order of the plans."""
        self._primary = self.groups[primary]
        # So that the others always have at least the pages that the primary has, whenever an
        # interrupt comes.
        self._primary_last = sorted(self.groups, key=lambda group: group is self._primary)
        self._shedding = tuple(group for group in self.groups if not group.retention.keeps_all)
        if index is not None:
            self._open_prefix(index)
        self.pool, self.host = self._primary.pool, self._primary.host
        self.prefix = self._primary.prefix
        """The prefix cache of the primary group; None if there is none."""
        self._tables = self._primary.tables
        self._reuse = Reuse(self.groups, primary, self._clock, self._events, block_size)
        self.away = AwayRequests(self.groups, self._clock, self._events)
        """Requests that wait with computed tokens."""
        self.pins = Pins(self.groups, primary, self._reuse, block_size)
        self._noted: set[str] = set()

    def _open_prefix(self, index: PrefixIndex) -> None:
        """Let every group keep full pages. Evicted pages go to the host only if there is one group
        that keeps all tokens: else they would have to be found there in all groups at once."""
        demotes = len(self.groups) == 1 and self._primary.retention.keeps_all
        for group in self.groups:
            mine = index if group is self._primary else HashIndex()
            host = group.host if demotes else None
            group.open_prefix(mine, host, self.costs, self._clock, self._events)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that a single request can keep if it is alone with the pinned pages."""
        blocks = min(
            group.reach(group.pool.num_blocks - self.pins.num_blocks(number))
            for number, group in enumerate(self.groups)
        )
        return min(int(self._tables.rows.shape[1]), blocks) * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def rows_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The requests' rows in the block tables, the same in every group."""
        return self._tables.rows_of(requests)

    def blocks_of(self, request: Request) -> tuple[int, ...]:
        """The request's pages in the primary group, in order of position."""
        table = self._tables.get(request)
        return tuple(table.blocks) if table is not None else ()

    # -- admission ---------------------------------------------------------------------------------

    def find(self, request: Request) -> Found:
        """Where the computed tokens of a waiting request are; changes nothing. An admission looks
        once and passes what it found to the methods below."""
        return self._reuse.find(request, self.away.firsts(request))

    def needed_blocks(
        self, request: Request, num_tokens: int | None = None, found: Found | None = None
    ) -> int:
        """Pages that a waiting request would take for its first `num_tokens` (None: all it knows).
        If pages are reserved at admission: pages for all it may ever reach."""
        if self._reservation is not None:
            most = int(self._tables.rows.shape[1])  # no request outgrows its table or the pool
            return min(most, self.blocks_for(self._reservation(request)))
        found = self.find(request) if found is None else found
        tokens = num_tokens or request.num_tokens
        return self._needed(self._primary_index, tokens, found)

    def _needed(self, number: int, num_tokens: int, found: Found) -> int:
        """Pages that a request takes in a group to compute up to `num_tokens`."""
        group, hit = self.groups[number], found.hits[number]
        shared = sum(1 for block in hit.blocks if group.pool.owners(block))
        return group.needed(hit.first, self.blocks_for(num_tokens)) - shared

    def fits(
        self,
        request: Request,
        kept_back: int = 0,
        num_tokens: int | None = None,
        found: Found | None = None,
    ) -> bool:
        """May a waiting request be admitted, with `kept_back` pages left for other requests?"""
        if self._reservation is not None:
            return self.pool.find_hole(self.needed_blocks(request)) is not None
        found = self.find(request) if found is None else found
        if self.needed_blocks(request, num_tokens, found) + kept_back > self.pool.num_available:
            return False
        # Beside the primary group the others do not run short; if one did, a request that computes
        # less than it might would only wait.
        tokens = found.num_tokens + 1
        return all(
            group is self._primary
            or self._needed(number, tokens, found) <= group.pool.num_available
            for number, group in enumerate(self.groups)
        )

    def admit(self, request: Request, found: Found | None = None) -> int:
        """Give the request its block tables and the pages of its computed tokens, and count these
        tokens as computed; returns their number. If it raises, the request has no tables."""
        self._close(request)  # returns pages of an interrupted admission
        try:
            for group in self.groups:
                group.tables.open(request)
            tokens = self._fill(request, found)
        except BaseException:
            self._close(request)
            raise
        request.num_computed_tokens = tokens
        return tokens

    def _close(self, request: Request) -> None:
        for group in self.groups:
            group.tables.close(request)

    def _fill(self, request: Request, found: Found | None) -> int:
        if self._reservation is not None:
            needed = self.needed_blocks(request)
            for group in self.groups:
                group.take_neighbours(request, needed)
            return self.away.fill(request)
        found = self.find(request) if found is None else found
        if request not in self.away:
            return self._reuse.take(request, found)
        self.away.restore(request, found)
        if self.prefix is not None:
            self._reuse.enter(request, 0, found.num_tokens // self.block_size)
        return found.num_tokens

    # -- steps -------------------------------------------------------------------------------------

    def missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Pages the request still needs to hold `num_tokens` in total."""
        table, blocks = self._tables.by_request.get(request), -(-num_tokens // self.block_size)
        if not self._primary.retention.keeps_all:
            first = 0 if table is None else table.first
            blocks = self._primary.needed(first, blocks)
        return blocks if table is None else blocks - len(table.blocks)

    def returned_blocks(self, request: Request) -> int:
        """Pages that become available if this request loses its own: those it does not share."""
        table = self._tables.get(request)
        blocks = table.blocks if table is not None else []
        return sum(1 for block in blocks if self.pool.owners(block) == 1)

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` after the computed ones, in every group; False if a group has
        too few pages."""
        blocks = -(-(request.num_computed_tokens + num_tokens) // self.block_size)
        table = self._tables.by_request[request]
        if table.first + len(table.blocks) >= blocks:
            return True  # in most steps no page is missing
        for group in self.groups:
            if group.missing(request, blocks) > group.pool.num_available:
                return False
        for group in self._primary_last:
            group.reserve(request, blocks)
        return True

    def commit(self, request: Request, kept: int, ahead: int = 0) -> None:
        """Count the first `kept` of the reserved tokens as computed and return surplus pages,
        except those of the next `ahead` tokens, which are in flight. Full pages enter the prefix
        index; if it has a page with the same content, the block table is changed to that page.
        Pages that no later token reads are freed."""
        before = request.num_computed_tokens
        tokens = before + kept
        blocks = -(-(tokens + ahead) // self.block_size)
        table = self._tables.by_request[request]
        surplus = table.first + len(table.blocks) - blocks
        if surplus < 0:
            raise IntegrityError(
                f"request {request.request_id} commits {kept} tokens it did not reserve"
            )
        if surplus and self._reservation is None:
            for group in self.groups:
                group.tables.shrink(group.tables[request], blocks)
        request.num_computed_tokens = tokens
        if self.prefix is not None:
            self._reuse.enter(request, before // self.block_size, tokens // self.block_size)
        for group in self._shedding:
            group.free_unread(request)

    def compact(self, request: Request, kept: Sequence[int]) -> None:
        """Move the reserved tokens `kept`, counted from the first one, so that they directly follow
        the committed ones: the accepted branch of a tree lies among other branches."""
        for group in self.groups:
            group.compact(request, kept)

    def forget(self, request: Request) -> None:
        """Free all pages; the request keeps an empty row in the block tables and computes from its
        first token again."""
        for group in self.groups:
            group.tables.shrink(group.tables[request], 0)
        request.num_computed_tokens = 0

    def release(self, request: Request) -> None:
        """Free everything the request has, in every tier; it may have nothing."""
        self._close(request)
        self._reuse.forget(request)
        self.away.drop(request)

    # -- swapping ----------------------------------------------------------------------------------

    def swap_out(self, request: Request) -> bool:
        """Move a running request's pages to the host and close its block tables. False, with
        nothing changed, if the host has no room."""
        if self.host is None or not request.num_computed_tokens or not self.away.save(request):
            return False
        self._close(request)
        return True

    # -- the whole ---------------------------------------------------------------------------------

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        """Report that a batch of a model over these pages was started: copies wait for it."""
        self._store.submitted(batch, model)

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
        return self._events.take()

    def owned(self) -> tuple[int, int]:
        """Pages with an owner, and their bytes."""
        blocks = num_bytes = 0
        for group in self.groups:
            owned = group.pool.num_owned
            blocks += owned
            num_bytes += owned * group.block_bytes
        return blocks, num_bytes

    def use(self) -> MemoryUse:
        """Pages and tokens now."""
        return measure_use(self.groups, self._primary_index, self.pins, self.block_size)

    def stranded_slots(self, request: Request) -> int:
        """External fragmentation: free slots that a waiting request cannot use, because no hole is
        large enough for neighbouring pages. Always 0 in paged memory."""
        if self._reservation is None or self.fits(request):
            return 0
        return self.pool.num_free * self.block_size

    def requests(self) -> set[Request]:
        """The requests that hold pages, or wait with some."""
        return self._tables.requests() | self.away.requests()

    def reset(self) -> None:
        """Free every page, whatever the state of the books. No request may be live."""
        for group in self.groups:
            group.reset()
        self._reuse.reset()
        self.away.reset()
        self.pins.reset()
        self._store.failed()

    def close(self) -> None:
        """Delete the pages that the disk tier keeps in files."""
        if self.host is not None:
            self.host.close()

    def check(self) -> None:
        """Verify every invariant. Raises IntegrityError."""
        for number, group in enumerate(self.groups):
            group.check(self.pins.holders(number), self.away.holders(number))
            self._primary.check_beside(group)
