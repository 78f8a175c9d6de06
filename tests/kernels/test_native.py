"""The native operators against the torch ones in float64, over shapes hypothesis draws."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import Paged, Shape, build, shapes, tolerance

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import Scores
from minserve.kernels.cpu.native import NativeOps, native_ops

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are full of NaN, so that a number never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ops() -> NativeOps:
    return native_ops()


def attend(
    ops: NativeOps | TorchOps, batch: Paged, need_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    planned = ops.plan_attention(*batch.args())
    scores = Scores(batch.scale, batch.shape.window)
    return planned(batch.q, batch.keys, batch.values, scores, need_lse)


def exact(batch: Paged) -> Paged:
    """The same numbers in float64."""
    return replace(
        batch, q=batch.q.double(), keys=batch.keys.double(), values=batch.values.double()
    )


def assert_attends(batch: Paged) -> None:
    out, lse = attend(native_ops(), batch)
    expected, expected_lse = attend(TorchOps(), exact(batch))
    assert lse is not None and expected_lse is not None
    assert out.dtype == batch.q.dtype and out.is_contiguous()
    assert (out - expected).abs().max() < tolerance(out.dtype)
    # Scores are summed in float32 or float64 whatever the inputs' type.
    assert (lse - expected_lse).abs().max() < (1e-12 if out.dtype == torch.float64 else 1e-5)


@each_dtype
@given(shape=shapes())
@settings(max_examples=60)
def test_attention(dtype: torch.dtype, shape: Shape) -> None:
    assert_attends(build(shape, dtype))


@each_dtype
@pytest.mark.parametrize("window", [None, 7, 1500])
@pytest.mark.parametrize("group_size", [1, 3, 8, 70])
def test_attention_over_a_long_context(
    dtype: torch.dtype, window: int | None, group_size: int
) -> None:
    shape = Shape((1, 2, 1, 1), (3000, 2049, 1024, 1), 16, 1, group_size, 32, window, 0)
    assert_attends(build(shape, dtype))


@each_dtype
def test_attention_of_a_chunk_of_several_tiles(dtype: torch.dtype) -> None:
    assert_attends(build(Shape((300, 1, 129), (300, 5, 700), 16, 2, 2, 64, None, 0), dtype))
    assert_attends(build(Shape((300, 1, 129), (300, 5, 700), 16, 2, 2, 64, 100, 0), dtype))


@pytest.mark.usefixtures("two_threads")
@each_dtype
def test_threads_change_nothing(dtype: torch.dtype, ops: NativeOps) -> None:
    batch = build(Shape((40, 1, 1, 129), (300, 2900, 40, 700), 16, 2, 2, 64, None, 0), dtype)
    parallel, _ = attend(ops, batch)
    torch.set_num_threads(1)
    alone, _ = attend(ops, batch)
    assert torch.equal(parallel, alone)


def rows_of(batch: Paged, request: int, chunk: tuple[int, int] | None = None) -> Paged:
    """A batch of one request, or of rows [start, stop) of it as one chunk."""
    start, stop = chunk or (0, batch.shape.query_lens[request])
    first = int(batch.query_starts[request])
    context = batch.shape.context_lens[request] - batch.shape.query_lens[request] + stop
    return replace(
        batch,
        q=batch.q[first + start : first + stop],
        block_tables=batch.block_tables[request : request + 1],
        query_starts=torch.tensor([0, stop - start], dtype=torch.int32),
        kv_lens=torch.tensor([context], dtype=torch.int32),
        shape=replace(batch.shape, query_lens=(stop - start,), context_lens=(context,)),
    )


@each_dtype
@given(shape=shapes())
@settings(max_examples=20)
def test_a_request_is_bitwise_the_same_in_any_company(dtype: torch.dtype, shape: Shape) -> None:
    batch, ops = build(shape, dtype), native_ops()
    together, _ = attend(ops, batch)
    for request, rows in enumerate(shape.query_lens):
        alone, _ = attend(ops, rows_of(batch, request))
        first = int(batch.query_starts[request])
        assert torch.equal(alone, together[first : first + rows])


@given(shape=shapes(max_requests=3), cut=st.integers(1, 69))
@settings(max_examples=20)
def test_float64_rows_are_bitwise_the_same_in_any_chunk(shape: Shape, cut: int) -> None:
    batch, ops = build(shape, torch.float64), native_ops()
    together, _ = attend(ops, batch)
    for request, rows in enumerate(shape.query_lens):
        if cut < rows:
            parts = [
                attend(ops, rows_of(batch, request, chunk))[0] for chunk in ((0, cut), (cut, rows))
            ]
            first = int(batch.query_starts[request])
            assert torch.equal(torch.cat(parts), together[first : first + rows])


@pytest.mark.parametrize("window", [None, 1500])
def test_a_float64_row_alone_is_bitwise_that_of_a_long_chunk(
    ops: NativeOps, window: int | None
) -> None:
    """In float32 the keys of a single row are divided, which changes its sums."""
    batch = build(Shape((3,), (2100,), 16, 1, 2, 32, window, 0), torch.float64)
    together, _ = attend(ops, batch)
    for row in range(3):
        alone, _ = attend(ops, rows_of(batch, 0, (row, row + 1)))
        assert torch.equal(alone[0], together[row])


def test_a_nan_stays_in_its_request(ops: NativeOps) -> None:
    batch = build(Shape((3, 1, 5), (30, 40, 50), 16, 2, 2, 32, None, 0), torch.float32)
    clean, _ = attend(ops, batch)
    batch.keys[batch.block_tables[1, 0], 0, 0] = math.nan
    out, _ = attend(ops, batch)
    assert out[3, :2].isnan().all()
    assert torch.equal(out[:3], clean[:3]) and torch.equal(out[4:], clean[4:])
    assert torch.equal(out[3, 2:], clean[3, 2:])


@each_dtype
def test_scores_of_any_size(dtype: torch.dtype, ops: NativeOps) -> None:
    batch = build(Shape((3, 1), (30, 2000), 16, 1, 2, 32, None, 0), dtype)
    batch = replace(batch, q=batch.q * 1000)
    out, _ = attend(ops, batch)
    expected, _ = attend(TorchOps(), exact(batch))
    # The scores themselves are rounded: at 3,000 in float32 by up to 2e-4.
    assert (out - expected).abs().max() < 50 * tolerance(dtype)


def test_attention_reads_caches_of_any_stride(ops: NativeOps) -> None:
    batch = build(Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3), torch.float64)
    expected, _ = attend(TorchOps(), batch)
    pool = torch.stack((batch.keys, batch.values), dim=1)
    inside_out = batch.keys.transpose(1, 2).contiguous().transpose(1, 2)
    for keys, values in ((pool[:, 0], pool[:, 1]), (inside_out, batch.values)):
        out, _ = attend(ops, replace(batch, keys=keys, values=values), need_lse=False)
        assert (out - expected).abs().max() < 1e-12


def test_one_plan_serves_layers_of_different_windows_and_shapes(ops: NativeOps) -> None:
    first = build(Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3), torch.float32)
    second = build(Shape((1, 9), (40, 33), 4, 1, 3, 64, 7, 3), torch.float32)
    planned = ops.plan_attention(*first.args())
    for batch in (first, second, first):
        scores = Scores(batch.scale, batch.shape.window)
        out, _ = planned(batch.q, batch.keys, batch.values, scores)
        assert (out - attend(TorchOps(), exact(batch))[0]).abs().max() < 1e-5


def test_float16_goes_to_torch(ops: NativeOps) -> None:
    batch = build(Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3), torch.float16)
    assert torch.equal(attend(ops, batch)[0], attend(TorchOps(), batch)[0])
    x = torch.randn(3, 8).half()
    assert torch.equal(ops.silu_and_mul(x), TorchOps().silu_and_mul(x))
    assert torch.equal(ops.gelu_and_mul(x), TorchOps().gelu_and_mul(x))
    assert torch.equal(ops.rms_norm(x, x[0], 1e-6), TorchOps().rms_norm(x, x[0], 1e-6))


@each_dtype
@given(rows=st.integers(1, 40), heads=st.integers(1, 9), size=st.integers(1, 300))
@settings(max_examples=25)
def test_rms_norm(dtype: torch.dtype, rows: int, heads: int, size: int) -> None:
    wide = torch.randn(rows, heads + 2, size + 3).to(dtype)
    weight = torch.randn(size).to(dtype)
    for x in (wide[:, 1 : heads + 1, :size], wide[:, 0, :size], wide[:, 0, 1 : size + 1]):
        out = native_ops().rms_norm(x, weight, 1e-5)
        expected = TorchOps().rms_norm(x.double(), weight.double(), 1e-5)
        assert out.dtype == dtype and out.shape == x.shape and out.is_contiguous()
        assert_close(out, expected)


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Each number to a few units in the last place of its type, or of 1 if it is smaller."""
    relative = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-7}[out.dtype]
    assert ((out - expected).abs() <= relative * expected.abs().clamp(min=1)).all()


@each_dtype
@given(rows=st.integers(1, 40), size=st.integers(1, 300))
@settings(max_examples=25)
def test_add_rms_norm(dtype: torch.dtype, rows: int, size: int) -> None:
    x = torch.randn(rows, size + 5).to(dtype)[:, :size]
    residual, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    total = residual + x
    out = native_ops().add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert_close(out, TorchOps().rms_norm(total.double(), weight.double(), 1e-5))


@each_dtype
@given(rows=st.integers(1, 9), inner=st.integers(1, 300), size=st.sampled_from([1.0, 30.0, 1e3]))
@settings(max_examples=25)
def test_silu_and_mul(dtype: torch.dtype, rows: int, inner: int, size: float) -> None:
    gate_up = torch.randn(rows, 2 * inner + 1).to(dtype)[:, : 2 * inner]
    gate_up[:, :inner] *= size
    out = native_ops().silu_and_mul(gate_up)
    assert_close(out, TorchOps().silu_and_mul(gate_up.double()))


@each_dtype
@given(rows=st.integers(1, 9), inner=st.integers(1, 300), size=st.sampled_from([1.0, 30.0, 1e3]))
@settings(max_examples=25)
def test_gelu_and_mul(dtype: torch.dtype, rows: int, inner: int, size: float) -> None:
    gate_up = torch.randn(rows, 2 * inner + 1).to(dtype)[:, : 2 * inner]
    gate_up[:, :inner] *= size
    out = native_ops().gelu_and_mul(gate_up)
    assert_close(out, TorchOps().gelu_and_mul(gate_up.double()))


@each_dtype
def test_the_exponential_is_as_good_as_the_type(dtype: torch.dtype, ops: NativeOps) -> None:
    gate = torch.linspace(-80, 0, 100_001, dtype=torch.float64).to(dtype)[None]
    out = ops.silu_and_mul(torch.cat((gate, torch.ones_like(gate)), 1)).double()
    relative = (out / (gate.double() * gate.double().sigmoid()) - 1)[gate != 0].abs().max()
    assert relative < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_gates_at_the_ends(ops: NativeOps, name: str) -> None:
    gate = torch.tensor([[-math.inf, -1e30, -200.0, 0.0, 200.0, 1e30, math.inf, math.nan]])
    both = torch.cat((gate, torch.ones_like(gate)), 1)
    if name == "silu":
        out, expected = ops.silu_and_mul(both), torch.nn.functional.silu(gate)
    else:
        out, expected = ops.gelu_and_mul(both), torch.nn.functional.gelu(gate, approximate="tanh")
    # -inf * 0 is NaN here as in torch.
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(0), expected.nan_to_num(0))


@each_dtype
@given(rows=st.integers(1, 40), heads=st.integers(1, 9), half=st.integers(1, 70))
@settings(max_examples=25)
def test_rotary(dtype: torch.dtype, rows: int, heads: int, half: int) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    angles = torch.rand(50, half, dtype=wide) * 6
    cos_sin, positions = torch.cat((angles.cos(), angles.sin()), 1), torch.randint(0, 50, (rows,))
    qkv = torch.randn(rows, heads + 2, 2 * half).to(dtype)
    expected = qkv.double()
    TorchOps().rotary_(expected[:, 1 : heads + 1], positions, cos_sin.double())
    native_ops().rotary_(qkv[:, 1 : heads + 1], positions, cos_sin)
    assert_close(qkv, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@given(rows=st.integers(1, 40), heads=st.integers(1, 4), block_size=st.sampled_from([1, 4, 16]))
@settings(max_examples=25)
def test_store_kv(dtype: torch.dtype, rows: int, heads: int, block_size: int) -> None:
    pages = torch.full((2, 60, heads, block_size, 24), math.nan, dtype=dtype)
    expected = pages.clone()
    qkv = torch.randn(rows, 3 * heads, 24).to(dtype)
    k, v = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
    slots = torch.randperm(60 * block_size)[:rows].clone()
    native_ops().store_kv(k, v, *pages, slots)
    TorchOps().store_kv(k, v, *expected, slots)
    assert torch.equal(pages.nan_to_num(7), expected.nan_to_num(7))
    inside_out = pages.transpose(2, 3).contiguous().transpose(2, 3)
    inside_out.fill_(math.nan)
    native_ops().store_kv(k, v, *inside_out, slots)
    assert torch.equal(inside_out.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("two_threads")
def test_threads_come_from_torchs_own_runtime(ops: NativeOps) -> None:
    attend(ops, build(Shape((40,), (300,), 16, 2, 2, 64, None, 0), torch.float32))
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    assert len(runtimes) <= 1
