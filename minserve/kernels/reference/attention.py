"""Paged attention in plain torch, over a ragged batch, without a Python loop over decode rows.

The batch is split into segments (a request's rows, long chunks in tiles), and segments of
similar shape share a bucket. A bucket gathers its pages with one `index_select` and folds the
query heads that share a KV head into extra query rows, so that keys and values are never
expanded. It is then one batched attention with a mask. Padding to the longest segment of a
bucket at most doubles its work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.kernels.base import Scores
from minserve.kernels.tree import MOST_ROWS, PLAIN, check_tree, refuse_window

QUERY_TILE = 128
"""Query rows of one segment: a long chunk is split, and each tile reads only the
keys it can see."""
GATHER_TOKENS = 1 << 15
"""Keys gathered at once. With 8 KV heads of 128 in float32 that is 128 MiB each of K and V."""
SCORE_ELEMENTS = 1 << 22
"""Entries of a bucket's mask, and of its scores per KV head."""
KEPT_MASK_ELEMENTS = 1 << 20
"""A mask up to this size is kept from layer to layer; a larger one is made again in each."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of `dtype` are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Geometry(NamedTuple):
    """The properties of a layer that the index tensors depend on: layers with equal
    values share them."""

    num_kv_heads: int
    block_size: int
    group_size: int
    window: int | None


class _Segment(NamedTuple):
    """Rows of one request that are computed together, and the pages they read."""

    request: int
    row: int
    """First row in the batch."""
    num_rows: int
    kv_len: int
    """Keys that the last row sees, itself included, counted from the request's first token."""
    first_block: int
    first_query: int
    """Index of the request's first query row among its keys."""
    num_blocks: int

    @property
    def row_class(self) -> int:
        """Rows rounded up to a power of two, as its exponent: decode rows are class 0."""
        return (self.num_rows - 1).bit_length()


def _segments(
    query_lens: tuple[int, ...], context_lens: tuple[int, ...], geometry: _Geometry
) -> list[_Segment]:
    """Split every request's rows into tiles, each with the pages its rows can see."""
    segments, row = [], 0
    for request, (query_len, context_len) in enumerate(zip(query_lens, context_lens, strict=True)):
        for start in range(0, query_len, QUERY_TILE):
            num_rows = min(QUERY_TILE, query_len - start)
            position = context_len - query_len + start
            kv_len = position + num_rows
            oldest = 0 if geometry.window is None else max(0, position - geometry.window + 1)
            first_block = oldest // geometry.block_size
            num_blocks = -(-kv_len // geometry.block_size) - first_block
            segments.append(
                _Segment(
                    request,
                    row + start,
                    num_rows,
                    kv_len,
                    first_block,
                    context_len - query_len,
                    num_blocks,
                )
            )
        row += query_len
    return segments


def _most_keys(row_class: int, group_size: int) -> int:
    """Most keys, over all its segments, that a bucket of such rows may gather."""
    return min(GATHER_TOKENS, SCORE_ELEMENTS // (group_size << row_class))


def _group(segments: list[_Segment], geometry: _Geometry) -> list[list[_Segment]]:
    """Group segments whose rows and keys differ at most twofold, within the memory bounds."""
    longest_first = sorted(segments, key=lambda s: (s.row_class, -s.num_blocks, s.row))
    groups: list[list[_Segment]] = []
    for segment in longest_first:
        if groups:
            head = groups[-1][0]
            keys = (len(groups[-1]) + 1) * head.num_blocks * geometry.block_size
            if (
                segment.row_class == head.row_class
                and 2 * segment.num_blocks >= head.num_blocks
                and keys <= _most_keys(head.row_class, geometry.group_size)
            ):
                groups[-1].append(segment)
                continue
        groups.append([segment])
    # In batch order, so that a batch with a single bucket needs no permutation.
    return [sorted(group, key=lambda s: s.row) for group in groups]


def _key_slices(group: list[_Segment], geometry: _Geometry) -> list[list[_Segment]]:
    """The same rows over fewer keys at a time, if one segment alone exceeds the bounds."""
    head = group[0]
    most_blocks = _most_keys(head.row_class, geometry.group_size) // geometry.block_size
    most_blocks = max(1, most_blocks)
    if len(group) > 1 or head.num_blocks <= most_blocks:
        return [group]
    return [
        [
            head._replace(
                first_block=head.first_block + start,
                num_blocks=min(most_blocks, head.num_blocks - start),
            )
        ]
        for start in range(0, head.num_blocks, most_blocks)
    ]


class _Bucket:
    """One batched attention: `size` segments of `num_rows` rows over `num_keys` gathered keys."""

    def __init__(
        self,
        segments: list[_Segment],
        geometry: _Geometry,
        num_tokens: int,
        block_tables: Tensor,
        tree: Tensor | None,
    ) -> None:
        device = block_tables.device
        self.geometry = geometry
        self.size = len(segments)
        self.num_rows = max(segment.num_rows for segment in segments)
        num_blocks = max(segment.num_blocks for segment in segments)
        self.num_keys = num_blocks * geometry.block_size
        table = torch.tensor(segments, dtype=torch.int64)
        request, row, length, kv_len, first_block, first_query = (
            column[:, None] for column in table.T[:6]
        )

        # A segment shorter than the bucket repeats its last row; the repeats are dropped later.
        step = torch.arange(self.num_rows)
        repeat = torch.minimum(step, length - 1)
        rows, real = (row + repeat).flatten(), (step < length).flatten()
        whole = rows.numel() == num_tokens and torch.equal(rows, torch.arange(num_tokens))
        self.rows = None if whole else rows.to(device)
        self.targets = None if whole else rows[real].to(device)
        self.real = None if bool(real.all()) else real.nonzero().flatten().to(device)

        block = (first_block + torch.arange(num_blocks)).clamp_(max=block_tables.shape[1] - 1)
        blocks = block_tables[request.to(device), block.to(device)].long()
        self.blocks = blocks[:, None, :]
        self.heads = torch.arange(geometry.num_kv_heads, device=device)[:, None]
        # The pages as rows of `[blocks * kv_heads]`: one index_select then gives contiguous `[size,
        # kv_heads, keys, head_dim]`; batched products of other layouts are very slow on a CPU.
        self.block_rows = (self.blocks * geometry.num_kv_heads + self.heads).flatten()

        # Slots after the request's end may hold anything from an earlier request, even NaN:
        # set them to zero.
        key = first_block * geometry.block_size + torch.arange(self.num_keys)
        past = (key >= kv_len)[:, None, :].expand(-1, geometry.num_kv_heads, -1)
        self.tail = past.flatten().nonzero().flatten().to(device)
        self.positions = (kv_len - length + repeat)[:, :, None].to(device)
        self.key_positions = key[:, None, :].to(device)
        self.first_query = first_query[:, :, None].to(device)
        self.tree = None if tree is None else tree[rows.to(device)].view(self.size, -1, 1)
        if self.tree is not None:  # A single row is never a tree.
            self.tree.masked_fill_((kv_len - first_query == 1)[:, :, None].to(device), PLAIN)
        self._mask: Tensor | None = None

    def mask(self, dtype: torch.dtype) -> Tensor:
        """`[size, 1, num_rows * group_size, num_keys]`: 0 if a row sees a key, else -inf."""
        if self._mask is not None and self._mask.dtype == dtype:
            return self._mask
        hidden = self.key_positions > self.positions
        if self.geometry.window is not None:
            hidden |= self.key_positions <= self.positions - self.geometry.window
        if self.tree is not None:
            distance = self.key_positions - self.first_query
            other_branch = (self.tree >> distance.clamp(0, MOST_ROWS)) & 1 == 0
            hidden |= other_branch & (distance >= 0)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        mask.masked_fill_(hidden, -math.inf)
        mask = mask.repeat_interleave(self.geometry.group_size, dim=1)[:, None]
        if mask.numel() <= KEPT_MASK_ELEMENTS:
            self._mask = mask
        return mask

    def gather(self, cache: Tensor) -> Tensor:
        """The bucket's keys or values: contiguous `[size, num_kv_heads, num_keys, head_dim]`."""
        num_kv_heads, head_dim = cache.shape[1], cache.shape[3]
        if cache.stride(0) == num_kv_heads * cache.stride(1):
            found = cache.flatten(0, 1).index_select(0, self.block_rows)
        else:
            found = cache[self.blocks, self.heads]
        found = found.view(-1, head_dim)
        if self.tail.numel():
            found.index_fill_(0, self.tail, 0)
        return found.view(self.size, num_kv_heads, self.num_keys, head_dim)

    def fold(self, q: Tensor) -> Tensor:
        """`[tokens, heads, head_dim]` -> `[size, kv_heads, num_rows * group_size, head_dim]`."""
        kv_heads, group_size = self.geometry.num_kv_heads, self.geometry.group_size
        mine = q if self.rows is None else q.index_select(0, self.rows)
        split = mine.reshape(self.size, self.num_rows, kv_heads, group_size, -1).transpose(1, 2)
        return split.reshape(self.size, kv_heads, self.num_rows * group_size, -1)

    def unfold(self, folded: Tensor) -> Tensor:
        """The inverse of `fold`, without repeated rows: `[rows, num_heads, ...]`, rows
        as in `targets`."""
        kv_heads, group_size = self.geometry.num_kv_heads, self.geometry.group_size
        split = folded.reshape(self.size, kv_heads, self.num_rows, group_size, -1).transpose(1, 2)
        rows = split.reshape(self.size * self.num_rows, kv_heads * group_size, -1)
        return rows if self.real is None else rows.index_select(0, self.real)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Attention as two products and a softmax, and the log-sum-exp `[..., rows, 1]`; `mask` says
    which keys a row sees.

    Both results are in the type of the sums. A row that sees no key is all zeros.
    """
    wide = accumulation_dtype(q.dtype)
    weights = torch.matmul(q.to(wide), k.to(wide).transpose(2, 3)).mul_(scores.scale)
    if scores.softcap is not None:
        weights.div_(scores.softcap).tanh_().mul_(scores.softcap)
    weights.add_(mask)
    lse = weights.logsumexp(-1, keepdim=True)
    weights.sub_(lse.masked_fill(lse == -math.inf, 0.0)).exp_()
    return torch.matmul(weights, v.to(wide)), lse


class TorchPlannedAttention:
    """`PlannedAttention` in plain torch. Index tensors are made at the first layer of a geometry.

    `use_sdpa`: True uses `scaled_dot_product_attention` unless the log-sum-exp or a soft cap is
    needed, False the written-out form. None uses it for float32 and narrower types: on a CPU it was
    one to three times as fast for every shape tried. The written-out float64 is the oracle.
    """

    def __init__(
        self,
        block_tables: Tensor,
        query_lens: tuple[int, ...],
        context_lens: tuple[int, ...],
        use_sdpa: bool | None = None,
        tree: Tensor | None = None,
    ) -> None:
        check_tree(tree, query_lens)
        self.tree = tree
        self.block_tables = block_tables
        self.query_lens = query_lens
        self.context_lens = context_lens
        self.use_sdpa = use_sdpa
        self._layouts: dict[_Geometry, list[list[_Bucket]]] = {}

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        refuse_window(self.tree, scores.window)
        group_size = q.shape[1] // keys.shape[1]
        geometry = _Geometry(keys.shape[1], keys.shape[2], group_size, scores.window)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype)) if need_lse else None
        for slices in self._layout(geometry, q.shape[0]):
            head, folded = slices[0], slices[0].fold(q)
            part_out, part_lse = self._attend(
                slices, folded, keys, values, scores, need_lse or len(slices) > 1
            )
            rows = head.unfold(part_out).to(q.dtype)
            row_lse = None if lse is None or part_lse is None else head.unfold(part_lse)[..., 0]
            if head.targets is None:
                return rows.contiguous(), row_lse
            out.index_copy_(0, head.targets, rows)
            if lse is not None and row_lse is not None:
                lse.index_copy_(0, head.targets, row_lse)
        return out, lse

    def _layout(self, geometry: _Geometry, num_tokens: int) -> list[list[_Bucket]]:
        """Buckets of this geometry, each as the key slices over which it is computed."""
        layout = self._layouts.get(geometry)
        if layout is None:
            groups = _group(_segments(self.query_lens, self.context_lens, geometry), geometry)
            layout = [
                [
                    _Bucket(part, geometry, num_tokens, self.block_tables, self.tree)
                    for part in slices
                ]
                for slices in (_key_slices(group, geometry) for group in groups)
            ]
            self._layouts[geometry] = layout
        return layout

    def _attend(
        self,
        slices: list[_Bucket],
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scores: Scores,
        need_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of folded rows `q`; slices of the keys are merged by their log-sum-exps."""
        use_sdpa = q.dtype != torch.float64 if self.use_sdpa is None else self.use_sdpa
        if use_sdpa and not need_lse and scores.softcap is None:
            (bucket,) = slices
            k, v, mask = bucket.gather(keys), bucket.gather(values), bucket.mask(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale), None
        parts = (
            written_out(q, bucket.gather(keys), bucket.gather(values), bucket.mask(q.dtype), scores)
            for bucket in slices
        )
        out, lse = next(parts)
        for part_out, part_lse in parts:
            both = torch.logaddexp(lse, part_lse)
            base = both.masked_fill(both == -math.inf, 0.0)
            out = out * (lse - base).exp() + part_out * (part_lse - base).exp()
            lse = both
        return out, lse
