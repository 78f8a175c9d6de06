"""The chunked searches give what the plain operators give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minserve.sampling.rows import (
    CHUNK,
    invert_cdf,
    largest_values,
    padded_width,
    row_max,
    take_chunks,
)

BELOW_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize("shape", [(1, 5), (3, 128), (2, 70_000), (2, 65_536), (40, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_row_max_is_the_maximum_and_its_lowest_index(shape, dtype):
    # Few distinct values, so that nearly every maximum is a tie.
    scores = torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, indices = row_max(scores)
    for row, value, index in zip(scores, values, indices, strict=True):
        assert value == row.max()
        assert index == (row == row.max()).nonzero()[0, 0]


@pytest.mark.parametrize("width", [100, 65_536])
def test_row_max_reports_nan(width):
    scores = torch.randn(3, width)
    scores[1, width // 2] = float("nan")
    assert row_max(scores)[0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_values_are_the_sorted_head(count, dtype):
    scores = torch.randint(-50, 50, (4, 100)).to(dtype)
    expected = scores.sort(dim=-1, descending=True).values[:, :count]
    assert torch.equal(largest_values(scores, count), expected)


def test_take_chunks_keeps_the_order_asked_for():
    scores = torch.arange(4 * CHUNK).float()[None]
    taken = take_chunks(scores, torch.tensor([[2, 0]]))
    wanted = [*range(2 * CHUNK, 3 * CHUNK), *range(CHUNK)]
    assert taken[0].tolist() == wanted


def test_padded_width_rounds_up():
    assert [padded_width(n) for n in (1, 64, 65, 151_936)] == [64, 64, 128, 151_936]


weights = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.sampled_from([CHUNK, 3 * CHUNK])),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1e-30, 1e-6, 0.25, 1.0]),
)


@settings(deadline=None)
@given(weights, st.sampled_from([0.0, 1e-17, 0.3, 0.5, 0.999999, BELOW_ONE]))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_invert_cdf_is_the_first_index_beyond_the_target(dtype, weights, uniform):
    weights[:, 5] = 1.0
    drawn = invert_cdf(
        torch.from_numpy(weights.astype(dtype)),
        torch.full((len(weights),), uniform, dtype=torch.float64),
    )
    for row, index in zip(weights, drawn.tolist(), strict=True):
        assert row[index] > 0
        # Up to rounding, the target lies between the totals before and after the index.
        target, slack = uniform * row.sum(), 1e-6 * row.sum()
        assert row[:index].sum() - slack <= target < row[: index + 1].sum() + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invert_cdf_never_draws_weight_zero_at_the_edge_of_a_chunk(dtype):
    generator = torch.Generator().manual_seed(0)
    chunks = torch.rand(5000, 4, CHUNK, generator=generator, dtype=dtype)
    chunks[:, 0] = 0.0
    chunks[:, 2, :9] = 0.0  # a chunk that begins, and one that ends, with nothing
    chunks[:, 1, -9:] = 0.0
    weights, totals = chunks.view(5000, -1), chunks.sum(dim=-1).double().cumsum(dim=-1)
    edge = totals[:, 1] / totals[:, 3]
    for uniforms in (edge, edge - 2.0**-53, edge + 2.0**-53, torch.zeros_like(edge)):
        assert (weights.gather(1, invert_cdf(weights, uniforms)[:, None]) > 0).all()


def test_invert_cdf_of_a_row_without_weight_is_in_range_and_harms_no_other():
    weights = torch.ones(3, CHUNK)
    weights[0], weights[1, 3] = 0.0, float("nan")
    drawn = invert_cdf(weights, torch.full((3,), 0.5).double())
    assert drawn[2] == CHUNK // 2
    assert ((drawn >= 0) & (drawn < CHUNK)).all()
