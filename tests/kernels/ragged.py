"""Ragged paged batches for kernel tests, and attention written as plainly as it can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from minserve.kernels.base import Scores
from minserve.kernels.tree import MOST_ROWS, PLAIN

SOFTCAPS = (None, 0.3, 2.0, 50.0)
"""50 is Gemma 2's; the smaller ones bend the scores of random queries and keys."""


@dataclass(frozen=True)
class Shape:
    """What a test draws; `build` makes the tensors."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    block_size: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    window: int | None
    seed: int
    tree: tuple[int, ...] | None = None
    """Masks of all rows."""
    softcap: float | None = None


@dataclass(frozen=True)
class Paged:
    """A batch over pages whose every unused number is NaN."""

    q: Tensor
    keys: Tensor
    values: Tensor
    block_tables: Tensor
    query_starts: Tensor
    kv_lens: Tensor
    shape: Shape

    def args(
        self,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...], tuple[int, ...], Tensor | None]:
        """The arguments of `plan_attention`."""
        shape = self.shape
        tree = None if shape.tree is None else torch.tensor(shape.tree, device=self.q.device)
        lens = shape.query_lens, shape.context_lens
        return (self.block_tables, self.query_starts, self.kv_lens, *lens, tree)

    @property
    def scale(self) -> float:
        return float(self.shape.head_dim**-0.5)

    @property
    def scores(self) -> Scores:
        return Scores(self.scale, self.shape.window, self.shape.softcap)


@st.composite
def shapes(
    draw: st.DrawFn, max_requests: int = 9, softcaps: Sequence[float | None] = (None,)
) -> Shape:
    query_lens, context_lens = [], []
    decode_only = draw(st.booleans())
    for _ in range(draw(st.integers(1, max_requests))):
        rows = 1 if decode_only else draw(st.one_of(st.just(1), st.integers(1, 70)))
        query_lens.append(rows)
        context_lens.append(draw(st.one_of(st.just(rows), st.integers(rows, 300))))
    return Shape(
        tuple(query_lens),
        tuple(context_lens),
        block_size=draw(st.sampled_from([1, 4, 16, 32, 64])),
        num_kv_heads=draw(st.sampled_from([1, 2, 3, 4, 12])),
        group_size=draw(st.sampled_from([1, 2, 3, 4, 8])),
        head_dim=draw(st.sampled_from([16, 18, 32, 40, 64, 128, 256])),
        window=draw(st.sampled_from([None, 1, 7, 64])),
        seed=draw(st.integers(0, 2**31)),
        softcap=draw(st.sampled_from(softcaps)),
    )


@st.composite
def grown(draw: st.DrawFn, shape: Shape) -> Shape:
    """The same shape without a window, where requests of 2 to 63 rows may be trees."""
    masks: list[int] = []
    for rows in shape.query_lens:
        if not 2 <= rows <= MOST_ROWS or draw(st.booleans()):
            masks += [PLAIN] * rows
            continue
        branches: list[int] = []
        for node in range(rows):
            # A root where there is no parent: several continuations may start at once.
            parent = draw(st.integers(-1, node - 1))
            branches.append(1 << node | (branches[parent] if parent >= 0 else 0))
        masks += branches
    return replace(shape, window=None, tree=tuple(masks))


def build(shape: Shape, dtype: torch.dtype, strided: bool = True) -> Paged:
    """Pages in random order; NaN wherever no token of a request lives."""
    generator = torch.Generator().manual_seed(shape.seed)
    block_size, kv_heads, head_dim = shape.block_size, shape.num_kv_heads, shape.head_dim
    pages = [-(-context // block_size) for context in shape.context_lens]
    num_blocks = sum(pages) + 2
    # Page 0 pads the tables and belongs to nobody.
    order = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    tables = torch.zeros(len(pages), max(pages) + 1, dtype=torch.int32)
    size = (num_blocks, kv_heads, block_size, head_dim)
    keys, values = (torch.full(size, math.nan, dtype=dtype) for _ in range(2))
    for request, (context, count) in enumerate(zip(shape.context_lens, pages, strict=True)):
        mine = [order.pop() for _ in range(count)]
        tables[request, :count] = torch.tensor(mine)
        for page, block in enumerate(mine):
            used = min(block_size, context - page * block_size)
            for cache in (keys, values):
                filled = torch.randn(kv_heads, used, head_dim, generator=generator)
                cache[block, :, :used] = filled.to(dtype)
        if shape.window is not None:
            # Pages behind the window are freed: their entries may name any page.
            oldest = max(0, context - shape.query_lens[request] - shape.window + 1)
            tables[request, : oldest // block_size] = 0
    num_heads = kv_heads * shape.group_size
    extra = 2 if strided else 0
    q = torch.randn(sum(shape.query_lens), num_heads + extra, head_dim, generator=generator)
    starts = torch.tensor([0, *shape.query_lens]).cumsum(0).to(torch.int32)
    return Paged(
        q.to(dtype)[:, :num_heads],
        keys,
        values,
        tables,
        starts,
        torch.tensor(shape.context_lens, dtype=torch.int32),
        shape,
    )


def dense_attention(batch: Paged) -> tuple[Tensor, Tensor]:
    """The definition, in float64, a row at a time: output `[rows, heads, head_dim]` and lse."""
    shape = batch.shape
    q, keys, values = batch.q.double(), batch.keys.double(), batch.values.double()
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float64)
    row = 0
    for request, (rows, context) in enumerate(
        zip(shape.query_lens, shape.context_lens, strict=True)
    ):
        where = torch.arange(context)
        table = batch.block_tables[request].long()
        blocks, offsets = table[where // shape.block_size], where % shape.block_size
        k, v = keys[blocks, :, offsets], values[blocks, :, offsets]
        start = context - rows
        for i in range(rows):
            position = context - rows + i
            first = 0 if shape.window is None else max(0, position - shape.window + 1)
            seen = [
                key for key in range(first, position + 1) if visible(shape, row, i, key - start)
            ]
            grouped = q[row].view(shape.num_kv_heads, shape.group_size, -1)
            scores = torch.einsum("hgd,thd->hgt", grouped, k[seen]) * batch.scale
            if shape.softcap is not None:
                scores = shape.softcap * (scores / shape.softcap).tanh()
            lse[row] = scores.logsumexp(-1).flatten()
            weighted = torch.einsum("hgt,thd->hgd", scores.softmax(-1), v[seen])
            out[row] = weighted.reshape(out[row].shape)
            row += 1
    return out, lse


def visible(shape: Shape, row: int, query: int, place: int) -> bool:
    """Does the batch's row `row`, its request's row `query`, see the key `place` after row 0's?"""
    mask = PLAIN if shape.tree is None else shape.tree[row]
    return place < 0 or mask == PLAIN or bool(mask >> place & 1)


def tolerance(dtype: torch.dtype) -> float:
    """Largest error allowed against float64, for outputs of size about 1."""
    return {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[
        dtype
    ]
