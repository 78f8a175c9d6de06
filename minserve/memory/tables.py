"""Block tables: which pages each admitted request holds, in order of position.

Rows of one array, so that a batch's tables and slots are gathered, not built. Counts what is held;
where pages come from, and what they contain, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minserve.memory.pool import BlockPool, IntegrityError
from minserve.request import Request


@dataclass(slots=True)
class Held:
    """What one admitted request holds."""

    row: int
    max_tokens: int
    """Most tokens it may ever reach."""
    blocks: list[int]
    tokens: int = 0
    """Committed: their keys and values are valid."""


class BlockTables:
    """`rows[row, i]` is the page of the i-th run of `block_size` tokens."""

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, blocks_per_request: int
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self.rows: npt.NDArray[np.int32] = np.zeros(
            (max_num_seqs, min(blocks_per_request, pool.num_blocks)), dtype=np.int32
        )
        self.reset()

    def reset(self) -> None:
        """No request holds anything; the pool is told nothing."""
        self._free_rows = list(range(self.rows.shape[0] - 1, -1, -1))
        self._held: dict[Request, Held] = {}
        self.internal_slots = 0
        """Slots that requests hold and can never fill."""

    def requests(self) -> set[Request]:
        """The requests that have a row."""
        return set(self._held)

    def __getitem__(self, request: Request) -> Held:
        return self._held[request]

    def __contains__(self, request: Request) -> bool:
        return request in self._held

    def get(self, request: Request | None) -> Held | None:
        """What a request holds; None where it was not admitted."""
        return self._held.get(request) if request is not None else None

    def holders(self) -> Iterator[list[int]]:
        """The pages of each request."""
        return (held.blocks for held in self._held.values())

    def rows_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The requests' rows."""
        held = self._held
        return np.array([held[request].row for request in requests], dtype=np.int64)

    def open(self, request: Request) -> Held:
        """Give a request an empty row."""
        held = Held(self._free_rows.pop(), request.max_len, [])
        self._held[request] = held
        return held

    def close(self, request: Request) -> None:
        """Return a request's pages and its row; one without a row is left alone."""
        held = self._held.pop(request, None)
        if held is not None:
            self.shrink(held, 0)
            self._free_rows.append(held.row)

    def extend(self, held: Held, blocks: Sequence[int]) -> None:
        """Append pages."""
        before = self._overhang(held)
        start = len(held.blocks)
        self.rows[held.row, start : start + len(blocks)] = blocks
        held.blocks.extend(blocks)
        self.internal_slots += self._overhang(held) - before

    def shrink(self, held: Held, num_blocks: int) -> None:
        """Return the pages behind the first `num_blocks`."""
        before = self._overhang(held)
        # The last page first: it is the first to be evicted, before the pages it continues.
        self._pool.release(reversed(held.blocks[num_blocks:]))
        del held.blocks[num_blocks:]
        self.internal_slots += self._overhang(held) - before

    def replace(self, held: Held, index: int, block: int) -> None:
        """Hold another page of the same content instead of the one at `index`."""
        self._pool.share(block)
        old, held.blocks[index] = held.blocks[index], block
        self.rows[held.row, index] = block
        self._pool.release((old,))

    def _overhang(self, held: Held) -> int:
        return max(0, len(held.blocks) * self._block_size - held.max_tokens)

    def totals(self) -> tuple[int, int]:
        """Pages and tokens of all requests, shared ones counted for each that holds them."""
        every = self._held.values()
        return sum([len(held.blocks) for held in every]), sum([held.tokens for held in every])

    def check(self) -> None:
        """Verify rows and pages of every request. Raises IntegrityError."""
        rows = [*(held.row for held in self._held.values()), *self._free_rows]
        if sorted(rows) != list(range(self.rows.shape[0])):
            raise IntegrityError("a block table row is lost or owned twice")
        for request, held in self._held.items():
            name = request.request_id
            if self.rows[held.row, : len(held.blocks)].tolist() != held.blocks:
                raise IntegrityError(f"block table of {name} differs from its pages")
            if held.tokens > len(held.blocks) * self._block_size:
                raise IntegrityError(f"{name} keeps tokens outside its pages")
            for block in held.blocks[held.tokens // self._block_size :]:
                if self._pool.owners(block) != 1:
                    raise IntegrityError(f"{name} will write into page {block}, which others hold")
        internal = sum(self._overhang(held) for held in self._held.values())
        if internal != self.internal_slots:
            raise IntegrityError(
                f"{self.internal_slots} slots are counted as wasted, and {internal} are"
            )
