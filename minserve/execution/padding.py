"""Rows that are computed and dropped, so that a batch takes a shape it would not have by itself.

Kernels that know no lengths need a rectangle: as many rows for every request as for the longest.
Where a batch is a rectangle until its last request ends, those that ended before are in it still.
Graphs captured per shape need few shapes: a ladder of row counts. Padding is appended as requests
of their own behind the real ones, so no real row moves, attends to padding, or is attended to by
it. Their keys and values go to one scratch page that belongs to no request. Rows are padded,
contexts are not: the attention of the padding is over itself alone. Knows nothing about requests.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minserve.batch import ForwardBatch, GroupTables


@functools.cache
def ladder(most_rows: int) -> tuple[int, ...]:
    """Row counts that graphs are captured for, ascending, `most_rows` the last: powers of two, from
    8 on every eighth and from 256 on every sixteenth number, so that little is padded."""
    counts = [1, 2, 4, *range(8, 256, 8), *range(256, most_rows, 16)]
    return (*(count for count in counts if count < most_rows), most_rows)


def padding_lens(
    kind: str, query_lens: Sequence[int], most_rows: int = 0, idle_places: int = 0
) -> tuple[int, ...]:
    """Rows of each request of padding, for real ones with `query_lens` rows each.

    `longest`: what each lacks to the longest. `batch`: that, and a row for each of `idle_places`,
    the places of a static batch that have emptied. `power_of_two`: what the step lacks to the next
    power of two, a row each. `ladder`: what up to `most_rows` requests of one row each lack to the
    next rung of `ladder(most_rows)`; other steps are left alone. `none`: nothing.
    """
    if kind in ("longest", "batch"):
        longest = max(query_lens)
        idle = idle_places if kind == "batch" else 0
        return tuple(longest - rows for rows in query_lens if rows < longest) + (1,) * idle
    if kind == "power_of_two":
        rows = sum(query_lens)
        return (1,) * ((1 << (rows - 1).bit_length()) - rows)
    if kind == "ladder" and len(query_lens) <= most_rows and max(query_lens) == 1:
        rungs = ladder(most_rows)
        return (1,) * (rungs[bisect.bisect_left(rungs, len(query_lens))] - len(query_lens))
    return ()


def pad(
    batch: ForwardBatch,
    kind: str,
    scratch_block: int,
    block_size: int,
    most_rows: int = 0,
    idle_places: int = 0,
) -> ForwardBatch:
    """The batch with padding of this `kind` appended; itself where there is nothing to add.

    `scratch_block` is a page of `block_size` slots in every group that no request ever owns;
    `most_rows` and `idle_places` as in `padding_lens`.
    """
    lens = padding_lens(kind, batch.query_lens, most_rows, idle_places)
    if not lens:
        return batch
    added = torch.tensor(lens, dtype=torch.int32)
    positions = torch.cat([torch.arange(rows) for rows in lens])
    slots = scratch_block * block_size + positions % block_size
    ends = batch.num_tokens + added.cumsum(0, dtype=torch.int32)
    blocks = -(-max(lens) // block_size)
    return replace(
        batch,
        token_ids=torch.cat((batch.token_ids, torch.zeros_like(positions))),
        positions=torch.cat((batch.positions, positions)),
        query_starts=torch.cat((batch.query_starts, ends)),
        kv_lens=torch.cat((batch.kv_lens, added)),
        groups=tuple(
            GroupTables(
                torch.cat((group.slots, slots)),
                _tables(group.block_tables, len(lens), blocks, scratch_block),
            )
            for group in batch.groups
        ),
        query_lens=batch.query_lens + lens,
        context_lens=batch.context_lens + lens,
    )


def _tables(real: Tensor, num_added: int, blocks: int, scratch_block: int) -> Tensor:
    """The block tables, wide enough for the padding, whose every page is the scratch page."""
    tables = real.new_zeros(len(real) + num_added, max(real.shape[1], blocks))
    tables[: len(real), : real.shape[1]] = real
    tables[len(real) :] = scratch_block
    return tables
