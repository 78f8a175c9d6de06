"""Padding: rows that are computed and dropped, so that a batch gets a certain shape.

Kernels that know no lengths need a rectangle: as many rows for every request as for the longest. If
a batch stays a rectangle until its last request ends, the requests that ended earlier are still in
it. Graphs captured per shape need few shapes: a fixed list of row counts. Padding is appended after
the real requests as requests of its own, so that no real row moves, attends to padding, or is
attended to by it. The keys and values of padding go to one scratch page that belongs to no request.
Rows are padded, contexts are not: padding attends only to itself. Knows nothing about requests.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minserve.batch import PLAIN, ForwardBatch, GroupTables


@functools.cache
def ladder(most_rows: int) -> tuple[int, ...]:
    """Row counts that graphs are captured for, ascending; the last is `most_rows`. Powers of two,
    multiples of 8 from 8, and multiples of 16 from 256, so that little is padded."""
    counts = [1, 2, 4, *range(8, 256, 8), *range(256, most_rows, 16)]
    return (*(count for count in counts if count < most_rows), most_rows)


def padding_lens(
    kind: str, query_lens: Sequence[int], most_rows: int = 0, idle_places: int = 0
) -> tuple[int, ...]:
    """Rows of each padding request, for real requests with `query_lens` rows each.

    `longest`: for each request, the rows it has less than the longest. `batch`: the same, plus a
    row for each of `idle_places`, the empty places of a static batch. `power_of_two`: single rows
    up to the next power of two. `ladder`: single rows up to the next count in
    `ladder(most_rows)`, for steps of at most `most_rows` requests with one row each; other steps
    are not padded. `none`: nothing.
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
    scratch_blocks: Sequence[int],
    block_size: int,
    most_rows: int = 0,
    idle_places: int = 0,
) -> ForwardBatch:
    """The batch with padding of this `kind` appended; the same object if there is nothing to add.

    `scratch_blocks` has for each group a page of `block_size` slots that no request ever owns;
    `most_rows` and `idle_places` as in `padding_lens`.
    """
    lens = padding_lens(kind, batch.query_lens, most_rows, idle_places)
    if not lens:
        return batch
    added = torch.tensor(lens, dtype=torch.int32)
    positions = torch.cat([torch.arange(rows) for rows in lens])
    offsets = positions % block_size
    ends = batch.num_tokens + added.cumsum(0, dtype=torch.int32)
    blocks = -(-max(lens) // block_size)
    plain = torch.full_like(positions, PLAIN)
    return replace(
        batch,
        token_ids=torch.cat((batch.token_ids, torch.zeros_like(positions))),
        positions=torch.cat((batch.positions, positions)),
        query_starts=torch.cat((batch.query_starts, ends)),
        kv_lens=torch.cat((batch.kv_lens, added)),
        tree=None if batch.tree is None else torch.cat((batch.tree, plain)),
        groups=tuple(
            GroupTables(
                torch.cat((group.slots, scratch_block * block_size + offsets)),
                _tables(group.block_tables, len(lens), blocks, scratch_block),
            )
            # A modelled batch has no groups.
            for group, scratch_block in zip(batch.groups, scratch_blocks, strict=False)
        ),
        query_lens=batch.query_lens + lens,
        context_lens=batch.context_lens + lens,
    )


def _tables(real: Tensor, num_added: int, blocks: int, scratch_block: int) -> Tensor:
    """The block tables, extended by rows for the padding, in which every page is
    the scratch page."""
    tables = real.new_zeros(len(real) + num_added, max(real.shape[1], blocks))
    tables[: len(real), : real.shape[1]] = real
    tables[len(real) :] = scratch_block
    return tables
