"""Soft-capped scores in the native operators, against the torch ones in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import Paged, Shape, build, grown, shapes, tolerance
from kernels.test_native import each_dtype, exact, poisoned_memory, rows_of, two_threads
from kernels.test_native_trees import fan

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import Ops, Scores
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.tree import PLAIN

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
__all__ = ["poisoned_memory", "two_threads"]

CAPS = st.sampled_from([0.1, 1.0, 30.0, 50.0, 1e4])


def attend(
    ops: Ops, batch: Paged, softcap: float | None, need_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    scores = Scores(batch.scale, batch.shape.window, softcap)
    planned = ops.plan_attention(*batch.args())
    return planned(batch.q, batch.keys, batch.values, scores, need_lse)


def assert_attends(batch: Paged, softcap: float) -> None:
    out, lse = attend(native_ops(), batch, softcap)
    expected, expected_lse = attend(TorchOps(), exact(batch), softcap)
    assert lse is not None and expected_lse is not None
    assert out.dtype == batch.q.dtype
    assert (out - expected).abs().max() < tolerance(out.dtype)
    assert (lse - expected_lse).abs().max() < (1e-12 if out.dtype == torch.float64 else 1e-5)
    without, none = attend(native_ops(), batch, softcap, need_lse=False)
    assert none is None and torch.equal(out, without)


@each_dtype
@given(shape=shapes(), softcap=CAPS)
@settings(max_examples=60)
def test_attention(dtype: torch.dtype, shape: Shape, softcap: float) -> None:
    assert_attends(build(shape, dtype), softcap)


@each_dtype
@given(shape=shapes().flatmap(grown), softcap=CAPS)
@settings(max_examples=40)
def test_attention_over_trees(dtype: torch.dtype, shape: Shape, softcap: float) -> None:
    assert_attends(build(shape, dtype), softcap)


@each_dtype
@pytest.mark.parametrize("window", [None, 7, 1500])
@pytest.mark.parametrize("group_size", [1, 3, 8, 70])
def test_attention_over_a_long_context(
    dtype: torch.dtype, window: int | None, group_size: int
) -> None:
    """A single row's keys are divided among units, and the parts are merged."""
    shape = Shape((1, 2, 1, 1), (3000, 2049, 1024, 1), 16, 1, group_size, 32, window, 0)
    assert_attends(build(shape, dtype), 2.0)


@each_dtype
def test_trees_over_long_contexts(dtype: torch.dtype) -> None:
    shape = Shape((1, 9, 2), (2900, 1027, 2), 16, 2, 3, 32, None, 0, (PLAIN, *fan(9), 1, 2))
    assert_attends(build(shape, dtype), 2.0)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("softcap", [1.0, 50.0])
def test_the_cap_is_the_hyperbolic_tangent(rows: int, softcap: float) -> None:
    """With a single key, the log-sum-exp is its score: of any size, and of both signs."""
    shape = Shape((rows,), (rows,), 1, 1, 1, 32, 1, 0)
    for dtype, error in ((torch.float64, 1e-13), (torch.float32, 2e-7)):
        batch = build(shape, dtype)
        for size in (1e-6, 1e-2, 1.0, 1e2, 1e6):
            scaled = replace(batch, q=batch.q * size)
            _, lse = attend(native_ops(), scaled, softcap)
            _, plain = attend(native_ops(), scaled, None)
            assert lse is not None and plain is not None
            expected = softcap * (plain.double() / softcap).tanh()
            assert ((lse - expected).abs() <= error * expected.abs() * 4).all()
            assert (lse.abs() <= softcap).all()


@each_dtype
def test_scores_of_any_size(dtype: torch.dtype) -> None:
    batch = build(Shape((3, 1), (30, 2000), 16, 1, 2, 32, None, 0), dtype)
    for size in (1e3, 1e30):
        assert_attends(replace(batch, q=batch.q * size), 5.0)


def test_a_nan_stays_in_its_request() -> None:
    batch = build(Shape((3, 1, 5), (30, 40, 50), 16, 2, 2, 32, None, 0), torch.float32)
    clean, _ = attend(native_ops(), batch, 5.0)
    batch.keys[batch.block_tables[1, 0], 0, 0] = math.nan
    out, _ = attend(native_ops(), batch, 5.0)
    assert out[3, :2].isnan().all()
    assert torch.equal(out[:3], clean[:3]) and torch.equal(out[4:], clean[4:])


@each_dtype
@given(shape=shapes(), softcap=CAPS)
@settings(max_examples=20)
def test_a_request_is_bitwise_the_same_in_any_company(
    dtype: torch.dtype, shape: Shape, softcap: float
) -> None:
    batch = build(shape, dtype)
    together, _ = attend(native_ops(), batch, softcap)
    for request, rows in enumerate(shape.query_lens):
        alone, _ = attend(native_ops(), rows_of(batch, request), softcap)
        first = int(batch.query_starts[request])
        assert torch.equal(alone, together[first : first + rows])


@given(shape=shapes(max_requests=3), cut=st.integers(1, 69))
@settings(max_examples=20)
def test_float64_rows_are_bitwise_the_same_in_any_chunk(shape: Shape, cut: int) -> None:
    batch = build(shape, torch.float64)
    together, _ = attend(native_ops(), batch, 3.0)
    for request, rows in enumerate(shape.query_lens):
        if cut < rows:
            chunks = [rows_of(batch, request, chunk) for chunk in ((0, cut), (cut, rows))]
            parts = [attend(native_ops(), chunk, 3.0)[0] for chunk in chunks]
            first = int(batch.query_starts[request])
            assert torch.equal(torch.cat(parts), together[first : first + rows])


@pytest.mark.usefixtures("two_threads")
@each_dtype
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    batch = build(Shape((40, 1, 1, 129), (300, 2900, 40, 700), 16, 2, 2, 64, None, 0), dtype)
    parallel, _ = attend(native_ops(), batch, 5.0)
    torch.set_num_threads(1)
    alone, _ = attend(native_ops(), batch, 5.0)
    assert torch.equal(parallel, alone)


def test_float16_goes_to_torch() -> None:
    batch = build(Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3), torch.float16)
    out, _ = attend(native_ops(), batch, 2.0)
    assert torch.equal(out, attend(TorchOps(), batch, 2.0)[0])
    assert not torch.equal(out, attend(TorchOps(), batch, None)[0])
