"""Speculative trees in the native operators, against the torch ones in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import Shape, build, dense_attention, grown, shapes, tolerance
from kernels.test_native import (
    assert_attends,
    attend,
    each_dtype,
    exact,
    poisoned_memory,
    two_threads,
)

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import Scores
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.tree import MOST_ROWS, PLAIN

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
__all__ = ["poisoned_memory", "two_threads"]

BITS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def noisy(draw: st.DrawFn, shape: Shape) -> Shape:
    """The same tree with bits that say nothing: those of later rows, and all of single rows."""
    masks = [PLAIN] * sum(shape.query_lens) if shape.tree is None else list(shape.tree)
    row = 0
    for rows in shape.query_lens:
        for node in range(rows):
            if rows == 1:
                masks[row] = draw(BITS)
            elif masks[row] != PLAIN:
                masks[row] |= draw(BITS) >> node + 1 << node + 1
            row += 1
    return replace(shape, tree=tuple(masks))


def as_masks(shape: Shape) -> Shape:
    """The same chains without a window, each written as masks if it has no more rows than those
    have bits."""
    masks: list[int] = []
    for rows in shape.query_lens:
        chain = [(2 << node) - 1 for node in range(rows)]
        masks += chain if rows <= MOST_ROWS else [PLAIN] * rows
    return replace(shape, window=None, tree=tuple(masks))


def assert_same(shape: Shape, other: Shape, dtype: torch.dtype) -> None:
    """Both give the same bits, with and without the log-sum-exp."""
    for need_lse in (True, False):
        results = [attend(native_ops(), build(each, dtype), need_lse) for each in (shape, other)]
        for one, two in zip(*results, strict=True):
            assert one is two is None or torch.equal(one, two)


def fan(rows: int) -> tuple[int, ...]:
    """Two branches side by side behind one root, their nodes in turn."""
    masks = [1]
    for node in range(1, rows):
        masks.append(1 << node | masks[max(0, node - 2)])
    return tuple(masks)


@each_dtype
@given(shape=shapes().flatmap(grown))
@settings(max_examples=60)
def test_a_tree_sees_its_branches_only(dtype: torch.dtype, shape: Shape) -> None:
    batch = build(shape, dtype)
    assert_attends(batch)
    (with_lse, _), (without, none) = (attend(native_ops(), batch, lse) for lse in (True, False))
    assert none is None and torch.equal(with_lse, without)


def test_the_definition_written_out() -> None:
    batch = build(
        Shape((4, 1), (30, 9), 16, 2, 2, 32, None, 0, tree=(1, 3, 5, 11, -1)), torch.float64
    )
    out, lse = attend(native_ops(), batch)
    expected, expected_lse = dense_attention(batch)
    assert (out - expected).abs().max() < 1e-12
    assert lse is not None and (lse - expected_lse).abs().max() < 1e-12


@each_dtype
@pytest.mark.parametrize("head_dim", [32, 40])
@pytest.mark.parametrize("group_size", [1, 3, 8, 70])
def test_trees_over_long_contexts(dtype: torch.dtype, group_size: int, head_dim: int) -> None:
    # A decode whose keys are divided, a tree that crosses a tile of keys, the longest tree, one of
    # two rows at the very first key, and a chunk of several tiles.
    lens = (1, 9, MOST_ROWS, 2, 129)
    tree = (PLAIN, *fan(9), *fan(MOST_ROWS), 1, 2, *[PLAIN] * 129)
    shape = Shape(lens, (2900, 1027, 2047, 2, 200), 16, 2, group_size, head_dim, None, 0, tree)
    assert_attends(build(shape, dtype))


@each_dtype
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_a_hidden_key_changes_nothing(dtype: torch.dtype, rows: int, group_size: int) -> None:
    """Row 1 is hidden from its later siblings: they do not see what it holds, and row 1 does."""
    star = tuple(1 | 1 << node for node in range(rows))
    shape = Shape((rows, 1), (70 + rows, 9), 16, 2, group_size, 32, None, 0, (*star, PLAIN))
    batch = build(shape, dtype)
    before, _ = attend(native_ops(), batch)
    block, offset = batch.block_tables[0, 71 // 16], 71 % 16
    batch.keys[block, :, offset] += 1
    batch.values[block, :, offset] *= -2
    after, _ = attend(native_ops(), batch)
    assert not torch.equal(before[1], after[1])
    others = [row for row in range(rows + 1) if row != 1]
    assert torch.equal(before[others], after[others])


@each_dtype
@given(data=st.data())
@settings(max_examples=40)
def test_a_chain_written_as_masks_is_the_plain_chain(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    shape = data.draw(shapes())
    masked = data.draw(noisy(as_masks(shape)))
    assert_same(replace(shape, window=None), masked, dtype)


@each_dtype
@given(data=st.data())
@settings(max_examples=40)
def test_bits_of_later_rows_and_of_single_rows_say_nothing(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    shape = data.draw(shapes().flatmap(grown))
    assert_same(shape, data.draw(noisy(shape)), dtype)


@each_dtype
@given(shape=shapes().flatmap(grown))
@settings(max_examples=40)
def test_plain_rows_are_bitwise_the_same_beside_trees(dtype: torch.dtype, shape: Shape) -> None:
    assert shape.tree is not None
    plain = torch.tensor([mask == PLAIN for mask in shape.tree])
    for need_lse in (True, False):
        (beside, lse), (alone, alone_lse) = (
            attend(native_ops(), build(each, dtype), need_lse)
            for each in (shape, replace(shape, tree=None))
        )
        assert torch.equal(beside[plain], alone[plain])
        if lse is not None and alone_lse is not None:
            assert torch.equal(lse[plain], alone_lse[plain])


@pytest.mark.usefixtures("two_threads")
@each_dtype
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    tree = (*fan(40), PLAIN, 1, 2, 5, *[PLAIN] * 129)
    shape = Shape((40, 1, 3, 129), (300, 2900, 40, 700), 16, 2, 2, 64, None, 0, tree)
    parallel, _ = attend(native_ops(), build(shape, dtype))
    torch.set_num_threads(1)
    alone, _ = attend(native_ops(), build(shape, dtype))
    assert torch.equal(parallel, alone)


@each_dtype
@pytest.mark.parametrize("group_size", [1, 8])
def test_a_row_that_sees_nothing_is_zeros(dtype: torch.dtype, group_size: int) -> None:
    shape = Shape((3, 2), (3, 70), 16, 2, group_size, 32, None, 0, (0, 2, 0, 0, 0))
    batch = build(shape, dtype)
    out, lse = attend(native_ops(), batch)
    expected, expected_lse = attend(TorchOps(), exact(batch))
    assert lse is not None and expected_lse is not None
    for row in range(5):
        blind = row in (0, 2)
        assert (lse[row] == -math.inf).all() == (expected_lse[row] == -math.inf).all() == blind
        assert (out[row] == 0).all() == blind
    assert (out - expected).abs().max() < tolerance(dtype)


def test_a_mask_of_any_stride_is_read() -> None:
    batch = build(Shape((4, 1), (30, 9), 16, 2, 2, 32, None, 0, (*fan(4), PLAIN)), torch.float32)
    *args, tree = batch.args()
    assert tree is not None
    spread = torch.stack((tree, torch.zeros_like(tree)), 1)[:, 0]
    planned = native_ops().plan_attention(*args, spread)
    out, _ = planned(batch.q, batch.keys, batch.values, Scores(batch.scale))
    assert torch.equal(out, attend(native_ops(), batch)[0])


def test_what_goes_to_torch_takes_its_tree_along() -> None:
    shape = Shape((4, 1), (30, 9), 16, 2, 2, 32, None, 0, (*fan(4), PLAIN))
    batch = build(shape, torch.float16)
    assert torch.equal(attend(native_ops(), batch)[0], attend(TorchOps(), batch)[0])
    wide = build(shape, torch.float64)
    inside_out = wide.keys.transpose(1, 2).contiguous().transpose(1, 2)
    out, _ = attend(native_ops(), replace(wide, keys=inside_out), need_lse=False)
    assert (out - attend(TorchOps(), wide)[0]).abs().max() < 1e-12


def test_what_no_tree_can_have_is_refused() -> None:
    shape = Shape((3, 64), (9, 70), 4, 1, 1, 16, None, 0, (1, 3, 5, *[PLAIN] * 64))
    batch = build(shape, torch.float64)
    *args, tree = batch.args()
    assert tree is not None
    scores = Scores(batch.scale, window=4)
    with pytest.raises(ValueError, match=r"a tree mask in a layer with a sliding window of 4 tok"):
        native_ops().plan_attention(*args, tree)(batch.q, batch.keys, batch.values, scores)
    with pytest.raises(ValueError, match=r"mask is torch.int64 \[66\], and the batch has 67 rows"):
        native_ops().plan_attention(*args, tree[1:])
    tree[40] = 1
    with pytest.raises(
        ValueError, match=r"request 1 .* a tree of 64 rows, .* bits for 63: propose"
    ):
        native_ops().plan_attention(*args, tree)
