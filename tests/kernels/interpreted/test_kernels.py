"""Every Triton kernel against the torch reference, over shapes hypothesis draws.

float32 and float16 only: bfloat16 is silently wrong in Triton's interpreter. Memory that a kernel
must not read is NaN, and so is memory it must write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import SOFTCAPS, Paged, Shape, build, dense_attention, grown, tolerance
from sampled import examples

from minserve.kernels import TorchOps
from minserve.kernels.triton import TritonOps
from minserve.kernels.triton.decode import PARTS, merge_kernel

EXAMPLES = examples(12, 4)
torch_ops = TorchOps()
overflows = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are full of NaN, so that a number never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def normal(*size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def small_shapes(draw: st.DrawFn, decode: bool) -> Shape:
    """A program costs a millisecond here: few requests, and contexts that cross a few tiles."""
    query_lens, context_lens = [], []
    for _ in range(draw(st.integers(1, 3))):
        rows = 1 if decode else draw(st.one_of(st.just(1), st.integers(1, 40)))
        query_lens.append(rows)
        context_lens.append(rows + draw(st.sampled_from([0, 1, 15, 31, 32, 63, 64, 100, 150])))
    return Shape(
        tuple(query_lens),
        tuple(context_lens),
        block_size=draw(st.sampled_from([1, 4, 16, 64])),
        num_kv_heads=draw(st.sampled_from([1, 2])),
        group_size=draw(st.sampled_from([1, 2, 3, 4, 8])),
        head_dim=draw(st.sampled_from([16, 18, 32, 40, 64, 128, 256])),
        window=draw(st.sampled_from([None, None, 1, 7, 64])),
        seed=draw(st.integers(0, 2**31)),
        softcap=draw(st.sampled_from(SOFTCAPS)),
    )


def check_attention(shape: Shape, dtype: torch.dtype, ops: TritonOps) -> None:
    check(build(shape, dtype), ops)


def check(batch: Paged, ops: TritonOps) -> None:
    dtype = batch.q.dtype
    expected, expected_lse = dense_attention(batch)
    planned = ops.plan_attention(*batch.args())
    args = (batch.q, batch.keys, batch.values, batch.scores)
    out, lse = planned(*args, True)
    assert lse is not None and out.dtype == dtype and out.is_contiguous()
    assert (out - expected).abs().max() < tolerance(dtype)
    assert (lse - expected_lse).abs().max() < tolerance(dtype)
    again, none = planned(*args)
    assert none is None and torch.equal(again, out)


@each_dtype
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_ragged_attention_is_its_definition(dtype: torch.dtype, data: st.DataObject) -> None:
    check_attention(data.draw(small_shapes(decode=False)), dtype, TritonOps(1))


@each_dtype
@given(data=st.data())
@settings(max_examples=EXAMPLES // 2, deadline=None)
def test_ragged_attention_over_trees(dtype: torch.dtype, data: st.DataObject) -> None:
    shape = data.draw(small_shapes(decode=False).flatmap(grown))
    check_attention(shape, dtype, TritonOps(1))


def test_a_tree_of_63_rows_sees_its_last_row() -> None:
    # A star: every row sees the first and itself. The last bit before the sign is in use.
    star = tuple(1 | 1 << node for node in range(63))
    shape = Shape((63, 2), (80, 2), 16, 1, 2, 32, None, 0, tree=(*star, -1, -1))
    check_attention(shape, torch.float32, TritonOps(1))


def test_the_only_row_of_a_request_ignores_its_mask() -> None:
    results = []
    for mask in (-1, 0):
        shape = Shape((3, 1), (9, 7), 16, 1, 2, 32, None, 0, tree=(1, 0b11, 0b101, mask))
        batch = build(shape, torch.float32)
        planned = TritonOps(1).plan_attention(*batch.args())
        results.append(planned(batch.q, batch.keys, batch.values, batch.scores)[0])
    assert torch.equal(*results)


def test_a_tree_of_more_rows_than_a_mask_has_bits_is_refused() -> None:
    shape = Shape((64, 2), (80, 2), 16, 1, 2, 32, None, 0, tree=(*[-1] * 63, 1, -1, -1))
    with pytest.raises(
        ValueError, match=r"request 0 .* a tree of 64 rows, .* bits for 63: propose"
    ):
        TritonOps(1).plan_attention(*build(shape, torch.float32).args())


@each_dtype
@given(data=st.data(), processors=st.sampled_from([1, 4, 16, 132]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_split_attention_is_its_definition(
    dtype: torch.dtype, data: st.DataObject, processors: int
) -> None:
    check_attention(data.draw(small_shapes(decode=True)), dtype, TritonOps(processors))


def test_a_context_split_into_parts_without_keys_is_still_exact() -> None:
    # 130 tokens make three parts by length, and whole tiles leave the last ones with nothing.
    shape = Shape((1, 1), (300, 3), 16, 1, 2, 32, None, 0)
    check_attention(shape, torch.float32, TritonOps(132))


@overflows
@pytest.mark.parametrize("query_lens", [(1, 1), (30, 2)], ids=["split", "ragged"])
def test_scores_far_beyond_the_cap_are_the_cap(query_lens: tuple[int, int]) -> None:
    """Their exponential is infinite in float32."""
    shape = Shape(query_lens, (300, 30), 16, 1, 2, 32, None, 0, softcap=0.5)
    batch = build(shape, torch.float32)
    check(replace(batch, q=batch.q * 1e4), TritonOps(132))


@pytest.mark.parametrize("softcap", [1e3, 1e6])
@pytest.mark.parametrize("query_lens", [(1, 1), (30, 2)], ids=["split", "ragged"])
def test_scores_far_below_the_cap_keep_their_digits(
    query_lens: tuple[int, int], softcap: float
) -> None:
    """1e6 is the largest cap that a model may have: it leaves scores as they are."""
    shape = Shape(query_lens, (300, 30), 16, 1, 2, 32, None, 0, softcap=softcap)
    for size in (1, 4):
        batch = build(shape, torch.float32)
        check(replace(batch, q=batch.q * size), TritonOps(132))


def test_a_cap_of_50_is_exact_where_scores_reach_it() -> None:
    """As in Gemma 2: scores of tens, a few of which the cap bends."""
    shape = Shape((1, 40), (200, 150), 16, 2, 2, 64, 100, 0, softcap=50.0)
    batch = build(shape, torch.float32)
    hot = replace(batch, q=batch.q * 8)
    assert dense_attention(hot)[1].max() > 25
    check(hot, TritonOps(4))


def test_one_part_needs_no_merge() -> None:
    shape = Shape((1, 1, 1), (64, 3, 100), 16, 2, 2, 32, 50, 0)
    check_attention(shape, torch.float16, TritonOps(1))


@each_dtype
@given(data=st.data(), splits=st.integers(1, 20), head_dim=st.sampled_from([16, 40, 128]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_number_of_parts_is_joined_exactly(
    dtype: torch.dtype, data: st.DataObject, splits: int, head_dim: int
) -> None:
    seed = data.draw(st.integers(0, 1000))
    sizes = normal(3, splits, dtype=torch.float32, seed=seed) * 20
    # Behind the first, any part may have had no keys; the last row is padding and has none at all.
    empty = torch.rand(3, splits, generator=torch.Generator().manual_seed(seed)) < 0.3
    empty[:, 0], empty[2] = False, True
    lse = sizes.masked_fill(empty, -math.inf)
    parts = normal(3, splits, head_dim, dtype=torch.float32, seed=seed + 1)
    parts[empty] = 0.0
    out = torch.full((3, head_dim), math.nan, dtype=dtype)
    joined = torch.full((3,), math.nan)
    merge_kernel[(3,)](
        parts, lse, out, joined, splits, head_dim,
        PARTS=PARTS, DIM=max(16, 1 << (head_dim - 1).bit_length()), LSE=True,
    )  # fmt: skip
    weights = lse[:2].double().softmax(-1)
    expected = (weights[:, :, None] * parts[:2].double()).sum(1)
    assert (out[:2] - expected).abs().max() < tolerance(dtype)
    assert (joined[:2] - lse[:2].double().logsumexp(-1)).abs().max() < 1e-5
    assert (out[2] == 0).all() and joined[2] == -math.inf


@each_dtype
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 16, 33, 100, 600]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_rms_norm(dtype: torch.dtype, rows: int, heads: int, width: int, seed: int) -> None:
    strided = normal(rows, heads + 1, width, dtype=dtype, seed=seed)[:, :heads]
    weight = normal(width, dtype=dtype, seed=seed + 1)
    got = TritonOps().rms_norm(strided, weight, 1e-5)
    expected = torch_ops.rms_norm(strided.double(), weight.double(), 1e-5)
    assert got.shape == strided.shape
    assert (got - expected).abs().max() < 2 * tolerance(dtype)
    flat = strided[:, 0]
    got = TritonOps().rms_norm(flat, weight, 1e-5)
    assert (got - expected[:, 0]).abs().max() < 2 * tolerance(dtype)


@each_dtype
@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    width=st.sampled_from([1, 16, 33, 600]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_rms_norm_of_chosen_rows(
    dtype: torch.dtype, rows: list[int], width: int, seed: int
) -> None:
    x = normal(5, width + 3, dtype=dtype, seed=seed)[:, :width]
    weight = normal(width, dtype=dtype, seed=seed + 1)
    got = TritonOps().rms_norm_rows(x, torch.tensor(rows), weight, 1e-5)
    assert torch.equal(got, TritonOps().rms_norm(x[rows], weight, 1e-5))
    expected = torch_ops.rms_norm_rows(x.double(), torch.tensor(rows), weight.double(), 1e-5)
    assert (got - expected).abs().max() < 2 * tolerance(dtype)


@each_dtype
@given(rows=st.integers(1, 3), width=st.sampled_from([1, 16, 100, 600]), seed=st.integers(0, 1000))
@settings(max_examples=EXAMPLES, deadline=None)
def test_add_rms_norm_writes_the_sum_it_normalises(
    dtype: torch.dtype, rows: int, width: int, seed: int
) -> None:
    x = normal(rows, width + 3, dtype=dtype, seed=seed)[:, :width]
    residual = normal(rows, width, dtype=dtype, seed=seed + 1)
    weight = normal(width, dtype=dtype, seed=seed + 2)
    total = residual + x
    got = TritonOps().add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    expected = torch_ops.rms_norm(total.double(), weight.double(), 1e-5)
    assert (got - expected).abs().max() < 2 * tolerance(dtype)


@each_dtype
@given(rows=st.integers(1, 3), inner=st.sampled_from([1, 40, 1024, 1500]), seed=st.integers(0, 999))
@settings(max_examples=EXAMPLES, deadline=None)
def test_gates(dtype: torch.dtype, rows: int, inner: int, seed: int) -> None:
    gate_up = normal(rows, 2 * inner + 1, dtype=dtype, seed=seed)[:, : 2 * inner]
    for name in ("silu_and_mul", "gelu_and_mul"):
        got = getattr(TritonOps(), name)(gate_up)
        expected = getattr(torch_ops, name)(gate_up.double())
        assert (got - expected).abs().max() < 4 * tolerance(dtype)


@overflows
@each_dtype
@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_and_mul"])
def test_a_gate_of_any_size_is_finite(dtype: torch.dtype, name: str) -> None:
    """Exponentials of these are infinite, in float32 the cube too; far below zero, nothing is
    left."""
    largest = torch.finfo(dtype).max
    gate = torch.tensor([[-largest, -1e4, -100.0, 0.0, 100.0, 1e4, largest]], dtype=dtype)
    out = getattr(TritonOps(), name)(torch.cat((gate, torch.ones_like(gate)), 1))
    assert torch.equal(out, gate.clamp(min=0.0))


@each_dtype
@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([2, 16, 18, 64, 128]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_rotary_turns_in_place(
    dtype: torch.dtype, rows: int, heads: int, head_dim: int, seed: int
) -> None:
    whole = normal(rows, heads + 2, head_dim, dtype=dtype, seed=seed)
    angles = torch.rand(50, head_dim // 2, dtype=torch.float64) * 7
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1).to(dtype)
    positions = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(seed))
    expected = whole.double()
    torch_ops.rotary_(expected[:, :heads], positions, cos_sin.double())
    TritonOps().rotary_(whole[:, :heads], positions, cos_sin)
    assert (whole - expected).abs().max() < 4 * tolerance(dtype)
    assert torch.equal(whole[:, heads:].double(), expected[:, heads:])


@each_dtype
@given(
    rows=st.integers(1, 5),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 18, 64]),
    block_size=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_store_writes_its_slots_and_nothing_else(
    dtype: torch.dtype, rows: int, heads: int, head_dim: int, block_size: int, seed: int
) -> None:
    both = normal(rows, 2 * heads, head_dim, dtype=dtype, seed=seed)
    k, v = both[:, :heads], both[:, heads:]
    keys, values = (torch.full((6, heads, block_size, head_dim), math.nan) for _ in range(2))
    keys, values = keys.to(dtype), values.to(dtype)
    order = torch.randperm(6 * block_size, generator=torch.Generator().manual_seed(seed))
    slots = order[: min(rows, 6 * block_size)]
    expected = keys.clone(), values.clone()
    torch_ops.store_kv(k, v, *expected, slots)
    TritonOps().store_kv(k, v, keys, values, slots)
    torch.testing.assert_close((keys, values), expected, rtol=0, atol=0, equal_nan=True)


@each_dtype
@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 18, 40, 64, 128, 256]),
    block_size=st.sampled_from([1, 4, 16]),
    normed=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_rotary_store_turns_and_stores_in_one_go(
    dtype: torch.dtype,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    normed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = normal(rows, heads + 2 * kv_heads + 1, head_dim, dtype=dtype, seed=seed)
    angles = torch.rand(50, head_dim // 2, generator=generator) * 7
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(0, 50, (rows,), generator=generator)
    norms = [normal(head_dim, dtype=dtype, seed=seed + n) for n in (1, 2)] if normed else []
    keys, values = (torch.full((6, kv_heads, block_size, head_dim), math.nan) for _ in range(2))
    keys, values = keys.to(dtype), values.to(dtype)
    slots = torch.randperm(6 * block_size, generator=generator)[:rows]
    wide, expected = whole.double(), (keys.double(), values.double())
    doubled = [norm.double() for norm in norms]
    torch_ops.rotary_store_(
        wide[:, 1:], positions, cos_sin.double(), *expected, slots, *doubled, eps=1e-5
    )
    TritonOps().rotary_store_(
        whole[:, 1:], positions, cos_sin, keys, values, slots, *norms, eps=1e-5
    )
    error = 4 * tolerance(dtype)
    queries = slice(0, heads + 1)
    torch.testing.assert_close(whole[:, queries].double(), wide[:, queries], rtol=0, atol=error)
    torch.testing.assert_close(keys.double(), expected[0], rtol=0, atol=error, equal_nan=True)
    torch.testing.assert_close(values.double(), expected[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("window", [1, 7, 33])
def test_pages_behind_the_window_are_not_read(rows: int, window: int) -> None:
    """They may belong to another request, and hold what it never wrote: 0 times NaN is NaN. A tile
    of keys used to begin before the window."""
    shape = Shape((rows, 3), (rows + 100, 90), 4, 1, 2, 16, window, seed=0)
    check_attention(shape, torch.float32, TritonOps(1))
