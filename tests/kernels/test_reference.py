"""The torch operators against their definitions in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import SOFTCAPS, Shape, build, dense_attention, grown, shapes, tolerance

from minserve.kernels.base import Scores
from minserve.kernels.reference import attention as reference_attention
from minserve.kernels.reference.ops import TorchOps

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("use_sdpa", [None, True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(shape=shapes(softcaps=SOFTCAPS))
@settings(max_examples=12)
def test_attention_is_its_definition(
    dtype: torch.dtype, use_sdpa: bool | None, shape: Shape
) -> None:
    batch = build(shape, dtype)
    expected, expected_lse = dense_attention(batch)
    planned = TorchOps(use_sdpa).plan_attention(*batch.args())
    for need_lse in (False, True):
        out, lse = planned(batch.q, batch.keys, batch.values, batch.scores, need_lse)
        assert out.dtype == dtype and out.is_contiguous()
        assert (out - expected).abs().max() < tolerance(dtype)
        assert (lse is not None) == need_lse
        if lse is not None:
            assert (lse - expected_lse).abs().max() < max(tolerance(dtype), 1e-12)


@pytest.mark.parametrize("use_sdpa", [None, False])
@given(data=st.data())
@settings(max_examples=20)
def test_a_tree_sees_its_branches_only(use_sdpa: bool | None, data: st.DataObject) -> None:
    shape = data.draw(shapes(max_requests=4, softcaps=SOFTCAPS).flatmap(grown))
    batch = build(shape, torch.float64)
    expected, expected_lse = dense_attention(batch)
    planned = TorchOps(use_sdpa).plan_attention(*batch.args())
    out, lse = planned(batch.q, batch.keys, batch.values, batch.scores, True)
    assert lse is not None
    assert (out - expected).abs().max() < 1e-12
    assert (lse - expected_lse).abs().max() < 1e-12


def test_a_tree_meets_no_window_and_has_a_mask_per_row() -> None:
    shape = Shape((3,), (9,), 4, 1, 1, 16, None, 0, tree=(1, 3, 5))
    batch = build(shape, torch.float64)
    planned = TorchOps().plan_attention(*batch.args())
    with pytest.raises(ValueError, match=r"a tree mask in a layer with a sliding window of 4 tok"):
        planned(batch.q, batch.keys, batch.values, Scores(batch.scale, 4))
    short = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"mask is torch.int64 \[2\], and the batch has 3 rows"):
        TorchOps().plan_attention(*batch.args()[:5], short)


def test_a_tree_of_more_rows_than_a_mask_has_bits_is_refused() -> None:
    shape = Shape((63, 64), (63, 70), 16, 1, 1, 16, None, 0, tree=(*[1] * 63, *[-1] * 64))
    batch = build(shape, torch.float64)
    *args, tree = batch.args()
    assert tree is not None
    TorchOps().plan_attention(*args, tree)
    tree[-1] = 1
    with pytest.raises(
        ValueError, match=r"request 1 .* a tree of 64 rows, .* bits for 63: propose"
    ):
        TorchOps().plan_attention(*args, tree)


@pytest.mark.parametrize("use_sdpa", [None, False])
def test_a_single_row_is_no_tree_whatever_its_mask(use_sdpa: bool | None) -> None:
    shape = Shape((1, 3, 1), (1, 9, 30), 16, 2, 2, 32, None, 0, tree=(0, 1, 3, 5, 6))
    plain = replace(shape, tree=(-1, 1, 3, 5, -1))
    results = []
    for each in (shape, plain):
        batch = build(each, torch.float64)
        planned = TorchOps(use_sdpa).plan_attention(*batch.args())
        results.append(planned(batch.q, batch.keys, batch.values, batch.scores)[0])
    assert torch.equal(*results)


def test_attention_in_bounded_pieces_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape((300, 1, 70, 1), (300, 200, 290, 7), 4, 2, 2, 32, None, 0)
    batch = build(shape, torch.float64)
    expected, expected_lse = dense_attention(batch)
    monkeypatch.setattr(reference_attention, "QUERY_TILE", 32)
    monkeypatch.setattr(reference_attention, "GATHER_TOKENS", 64)
    monkeypatch.setattr(reference_attention, "SCORE_ELEMENTS", 1024)
    for window in (None, 50):
        if window is not None:
            shape = Shape((300, 1, 70, 1), (300, 200, 290, 7), 4, 2, 2, 32, window, 0)
            batch = build(shape, torch.float64)
            expected, expected_lse = dense_attention(batch)
        planned = TorchOps().plan_attention(*batch.args())
        out, lse = planned(batch.q, batch.keys, batch.values, batch.scores, True)
        assert lse is not None
        assert (out - expected).abs().max() < 1e-12
        assert (lse - expected_lse).abs().max() < 1e-12


def test_attention_reads_caches_of_any_stride() -> None:
    shape = Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3)
    batch = build(shape, torch.float64)
    pool = torch.stack((batch.keys, batch.values), dim=1)
    out, _ = TorchOps().plan_attention(*batch.args())(batch.q, pool[:, 0], pool[:, 1], batch.scores)
    assert (out - dense_attention(batch)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_of_strided_heads(dtype: torch.dtype) -> None:
    wide = torch.randn(5, 6, 16).to(dtype)
    x, weight = wide[:, 1:4], torch.rand(16).to(dtype)
    exact = x.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert (TorchOps().rms_norm(x, weight, 1e-5) - expected).abs().max() < tolerance(dtype)


def test_rms_norm_of_chosen_rows_is_that_of_a_gathered_copy() -> None:
    x, weight, rows = torch.randn(6, 8), torch.rand(8), torch.tensor([4, 0, 4])
    expected = TorchOps().rms_norm(torch.stack((x[4], x[0], x[4])), weight, 1e-5)
    assert torch.equal(TorchOps().rms_norm_rows(x, rows, weight, 1e-5), expected)


def test_add_rms_norm_updates_the_residual() -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
    total = x + residual
    out = TorchOps().add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    assert torch.equal(out, TorchOps().rms_norm(total, weight, 1e-6))


def test_silu_and_mul_takes_the_gate_first() -> None:
    gate_up = torch.randn(4, 12, dtype=torch.float64)
    gate, up = gate_up[:, :6], gate_up[:, 6:]
    expected = gate / (1 + torch.exp(-gate)) * up
    assert (TorchOps().silu_and_mul(gate_up) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_turns_pairs_of_halves(dtype: torch.dtype) -> None:
    angles = torch.outer(torch.arange(50.0), 0.3 ** torch.arange(4.0)).double()
    table = torch.cat((angles.cos(), angles.sin()), -1)
    cos_sin = table.to(torch.promote_types(torch.float32, dtype))
    qkv = torch.randn(3, 5, 8).to(dtype)
    before, positions = qkv.clone(), torch.tensor([0, 17, 49])
    TorchOps().rotary_(qkv[:, 1:3], positions, cos_sin)
    assert torch.equal(qkv[:, 0], before[:, 0]) and torch.equal(qkv[:, 3:], before[:, 3:])
    for row, position in enumerate(positions.tolist()):
        for pair in range(4):
            cos, sin = table[position, pair], table[position, 4 + pair]
            a, b = before[row, 1:3, pair].double(), before[row, 1:3, pair + 4].double()
            assert (qkv[row, 1:3, pair] - (a * cos - b * sin)).abs().max() < tolerance(dtype)
            assert (qkv[row, 1:3, pair + 4] - (b * cos + a * sin)).abs().max() < tolerance(dtype)


def test_store_kv_writes_each_row_to_its_slot_and_nowhere_else() -> None:
    keys, values = torch.full((2, 6, 3, 4, 8), math.nan)
    qkv = torch.randn(4, 9, 8)
    k, v = qkv[:, 3:6], qkv[:, 6:]
    slots = torch.tensor([0, 23, 9, 10])
    TorchOps().store_kv(k, v, keys, values, slots)
    for row, slot in enumerate(slots.tolist()):
        assert torch.equal(keys[slot // 4, :, slot % 4], k[row])
        assert torch.equal(values[slot // 4, :, slot % 4], v[row])
    assert keys.isnan().sum() == values.isnan().sum() == keys.numel() - k.numel()


@pytest.mark.parametrize("normed", [False, True])
def test_rotary_store_is_norm_rotation_and_store(normed: bool) -> None:
    heads = torch.randn(4, 10, 8, dtype=torch.float64)[:, 1:]
    q, k, v = heads.clone().split((5, 2, 2), 1)
    cos_sin, positions = torch.randn(50, 8, dtype=torch.float64), torch.tensor([0, 17, 49, 17])
    slots = torch.tensor([0, 23, 9, 10])
    norms = [torch.rand(8, dtype=torch.float64) for _ in range(2)] if normed else [None, None]
    if normed:
        q, k = (
            x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
            for x, weight in zip((q, k), norms, strict=True)
        )
    cos, sin = cos_sin[positions, None, :4], cos_sin[positions, None, 4:]
    q, k = (
        torch.cat((x[..., :4] * cos - x[..., 4:] * sin, x[..., 4:] * cos + x[..., :4] * sin), -1)
        for x in (q, k)
    )
    keys, values = torch.full((2, 6, 2, 4, 8), math.nan, dtype=torch.float64)
    TorchOps().rotary_store_(heads, positions, cos_sin, keys, values, slots, *norms, eps=1e-3)
    assert (heads[:, :5] - q).abs().max() < 1e-14
    for row, slot in enumerate(slots.tolist()):
        assert (keys[slot // 4, :, slot % 4] - k[row]).abs().max() < 1e-14
        assert torch.equal(values[slot // 4, :, slot % 4], v[row])
    assert keys.isnan().sum() == values.isnan().sum() == keys.numel() - k.numel()
