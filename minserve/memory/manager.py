"""Pages to requests: reserve before a step, commit after it, release at the end.

Block tables are rows of one array, so that a batch's tables and slots are gathered, not built.
Knows token counts, not tokens; who is to be preempted is the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minserve.memory.pool import BlockPool, IntegrityError
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Pages and tokens at one moment."""

    blocks_total: int
    blocks_used: int
    kv_tokens: int
    """Tokens committed: their keys and values are valid."""


class KVManager:
    """Paged KV memory of one engine (PagedAttention, Kwon et al., arXiv 2309.06180).

    `reserve(request, n)` makes room for n more tokens, `commit(request, kept)` keeps the first
    `kept` of them and returns what is not needed any more.
    """

    def __init__(
        self, num_blocks: int, block_size: int, max_num_seqs: int, blocks_per_request: int
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.tables: npt.NDArray[np.int32] = np.zeros(
            (max_num_seqs, min(blocks_per_request, num_blocks)), dtype=np.int32
        )
        """`[max_num_seqs, blocks]`: row `row_of(request)` lists that request's pages."""
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._rows: dict[Request, int] = {}
        self._blocks: dict[Request, list[int]] = {}
        self._tokens: dict[Request, int] = {}

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one request alone can keep."""
        return int(self.tables.shape[1]) * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def row_of(self, request: Request) -> int:
        """The request's row in `tables`."""
        return self._rows[request]

    def rows_of(self, requests: list[Request]) -> npt.NDArray[np.int64]:
        """The requests' rows in `tables`."""
        rows = self._rows
        return np.array([rows[request] for request in requests], dtype=np.int64)

    def blocks_of(self, request: Request) -> tuple[int, ...]:
        """The request's pages, in order of position."""
        return tuple(self._blocks.get(request, ()))

    def admit(self, request: Request) -> None:
        """Give the request a block table."""
        self._rows[request] = self._free_rows.pop()
        self._blocks[request] = []
        self._tokens[request] = 0

    def missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Pages the request still lacks to hold `num_tokens` in total."""
        return self.blocks_for(num_tokens) - len(self._blocks.get(request, ()))

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` beyond the committed ones; False when pages are short."""
        blocks = self._blocks[request]
        held = len(blocks)
        needed = -(-(self._tokens[request] + num_tokens) // self.block_size) - held
        if needed <= 0:
            return True
        if needed > self.pool.num_free:
            return False
        fresh = self.pool.allocate(needed)
        self.tables[self._rows[request], held : held + needed] = fresh
        blocks.extend(fresh)
        return True

    def commit(self, request: Request, kept: int) -> None:
        """Keep the first `kept` tokens of what was reserved and return surplus pages."""
        tokens = self._tokens[request] + kept
        blocks = self._blocks[request]
        needed = -(-tokens // self.block_size)
        if needed > len(blocks):
            raise IntegrityError(
                f"request {request.request_id} commits {kept} tokens it did not reserve"
            )
        self._tokens[request] = tokens
        if needed < len(blocks):
            self.pool.release(reversed(blocks[needed:]))
            del blocks[needed:]

    def forget(self, request: Request) -> None:
        """Return all pages but keep the block table: the request computes from its start again."""
        blocks = self._blocks[request]
        self.pool.release(reversed(blocks))
        blocks.clear()
        self._tokens[request] = 0

    def release(self, request: Request) -> None:
        """Return all pages and the block table. A request that holds none is left alone."""
        if request not in self._rows:
            return
        self.forget(request)
        del self._blocks[request], self._tokens[request]
        self._free_rows.append(self._rows.pop(request))

    def use(self) -> MemoryUse:
        """Pages and tokens now."""
        return MemoryUse(self.pool.num_blocks, self.pool.num_owned, sum(self._tokens.values()))

    def check(self) -> None:
        """Verify every invariant; raises IntegrityError with the first one that fails."""
        self.pool.check(self._blocks.values())
        rows: list[Any] = [*self._rows.values(), *self._free_rows]
        if sorted(rows) != list(range(self.tables.shape[0])):
            raise IntegrityError("a block table row is lost or owned twice")
        for request, blocks in self._blocks.items():
            row = self.tables[self._rows[request], : len(blocks)]
            if row.tolist() != blocks:
                raise IntegrityError(f"block table of {request.request_id} differs from its pages")
            if self._tokens[request] > len(blocks) * self.block_size:
                raise IntegrityError(f"{request.request_id} keeps tokens outside its pages")
