"""Block tables: which pages each admitted request holds, in order of position.

They are rows of one array, so that a batch's tables and slots are gathered instead of built. Knows
nothing about where pages come from and what they contain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minserve.memory.pool import BlockPool, IntegrityError
from minserve.request import Request


@dataclass(slots=True)
class BlockTable:
    """The block table of one admitted request."""

    row: int
    max_tokens: int
    """Most tokens it may ever reach."""
    blocks: list[int]
    first: int = 0
    """Leading pages that it does not hold: no token reads them any more."""
    first_token: int = 0
    """Its pages do not hold the tokens before this one, because another engine had dropped them.
    A page that lacks some is read like others, and never enters the prefix index."""


class BlockTables:
    """`rows[row, i]` is the page of the i-th `block_size` tokens. Where a request does not hold
    that page, it is the number of some page, and is not read."""

    def __init__(self, pool: BlockPool, block_size: int, max_num_seqs: int, width: int) -> None:
        """`width`: most pages of a request, whether it still holds them or not."""
        self._pool = pool
        self._block_size = block_size
        self.rows: npt.NDArray[np.int32] = np.zeros((max_num_seqs, width), dtype=np.int32)
        self.reset()

    def reset(self) -> None:
        """Empty every table; does not change the pool."""
        self._free_rows = list(range(self.rows.shape[0] - 1, -1, -1))
        self.by_request: dict[Request, BlockTable] = {}
        """The tables of the requests that have a row."""
        self.internal_slots = 0
        """Slots that requests hold and can never fill."""

    def requests(self) -> set[Request]:
        """The requests that have a row."""
        return set(self.by_request)

    def __getitem__(self, request: Request) -> BlockTable:
        return self.by_request[request]

    def __contains__(self, request: Request) -> bool:
        return request in self.by_request

    def get(self, request: Request | None) -> BlockTable | None:
        """The block table of a request; None if it was not admitted."""
        return self.by_request.get(request) if request is not None else None

    def holders(self) -> Iterator[list[int]]:
        """The pages of each request."""
        return (table.blocks for table in self.by_request.values())

    def rows_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The requests' rows."""
        tables = self.by_request
        return np.array([tables[request].row for request in requests], dtype=np.int64)

    def open(self, request: Request) -> BlockTable:
        """Give a request an empty row."""
        table = BlockTable(self._free_rows.pop(), request.max_len, [])
        self.by_request[request] = table
        return table

    def close(self, request: Request) -> None:
        """Free a request's pages and its row. Does nothing for a request without a row."""
        table = self.by_request.pop(request, None)
        if table is not None:
            self.shrink(table, 0)
            self._free_rows.append(table.row)

    def slots(self, table: BlockTable, places: Iterable[int]) -> list[int]:
        """The token slots of these positions of the request, each block * block_size + offset."""
        size, first = self._block_size, table.first
        return [table.blocks[place // size - first] * size + place % size for place in places]

    def extend(self, table: BlockTable, blocks: Sequence[int]) -> None:
        """Append pages."""
        before = self._overhang(table)
        start = table.first + len(table.blocks)
        self.rows[table.row, start : start + len(blocks)] = blocks
        table.blocks.extend(blocks)
        self.internal_slots += self._overhang(table) - before

    def shrink(self, table: BlockTable, num_blocks: int) -> None:
        """Free all pages after the first `num_blocks` of the request."""
        before, kept = self._overhang(table), max(0, num_blocks - table.first)
        # The last page first: it must be evicted before the pages it continues.
        self._pool.release(reversed(table.blocks[kept:]))
        del table.blocks[kept:]
        if not num_blocks:
            table.first = table.first_token = 0
        self.internal_slots += self._overhang(table) - before

    def drop_front(self, table: BlockTable, first: int) -> None:
        """Free all pages before page `first` of the request."""
        before, count = self._overhang(table), first - table.first
        self._pool.release(table.blocks[:count])
        del table.blocks[:count]
        table.first = first
        self.internal_slots += self._overhang(table) - before

    def replace(self, table: BlockTable, index: int, block: int) -> None:
        """Replace the page at `index` by another page with the same content."""
        self._pool.share(block)
        at = index - table.first
        old, table.blocks[at] = table.blocks[at], block
        self.rows[table.row, index] = block
        self._pool.release((old,))

    def _overhang(self, table: BlockTable) -> int:
        if not table.blocks:
            return 0
        return max(0, (table.first + len(table.blocks)) * self._block_size - table.max_tokens)

    def totals(self) -> tuple[int, int]:
        """Pages that requests hold, and tokens that they have computed; a shared page counts once
        for each request that holds it."""
        every = self.by_request
        return (
            sum([len(table.blocks) for table in every.values()]),
            sum([request.num_computed_tokens for request in every]),
        )

    def num_skipped_tokens(self) -> int:
        """Computed tokens at the beginning of requests that they do not hold any more."""
        size = self._block_size
        tables = self.by_request.values()
        return sum([max(size * table.first, table.first_token) for table in tables])

    def check(self) -> None:
        """Verify rows and pages of every request. Raises IntegrityError."""
        rows = [*(table.row for table in self.by_request.values()), *self._free_rows]
        if sorted(rows) != list(range(self.rows.shape[0])):
            raise IntegrityError("a block table row is lost or owned twice")
        for request, table in self.by_request.items():
            name, tokens = request.request_id, request.num_computed_tokens
            first, stop = table.first, table.first + len(table.blocks)
            if self.rows[table.row, first:stop].tolist() != table.blocks:
                raise IntegrityError(f"block table of {name} differs from its pages")
            if not first * self._block_size <= tokens <= stop * self._block_size:
                raise IntegrityError(f"{name} keeps tokens outside its pages")
            for block in table.blocks[tokens // self._block_size - first :]:
                if self._pool.owners(block) != 1:
                    raise IntegrityError(f"{name} will write into page {block}, which others hold")
        internal = sum(self._overhang(table) for table in self.by_request.values())
        if internal != self.internal_slots:
            raise IntegrityError(
                f"{self.internal_slots} slots are counted as wasted, and {internal} are"
            )
