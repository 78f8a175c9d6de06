"""The Triton kernels on a GPU: the formats that serve, against float64, memory poisoned first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from kernels.ragged import Paged, Shape, build, dense_attention, shapes, tolerance

from minserve.kernels import TorchOps

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def on_gpu(batch: Paged) -> Paged:
    names = ("q", "keys", "values", "block_tables", "query_starts", "kv_lens")
    return replace(batch, **{name: getattr(batch, name).cuda() for name in names})


def poison() -> None:
    """Fill what the allocator will hand out next with NaN."""
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), math.nan, device="cuda")


@each_dtype
@given(shape=shapes())
@settings(max_examples=60, deadline=None)
def test_attention_is_its_definition(dtype: torch.dtype, shape: Shape) -> None:
    from minserve.kernels.triton import TritonOps

    batch = build(shape, dtype)
    expected, expected_lse = dense_attention(batch)
    gpu = on_gpu(batch)
    poison()
    planned = TritonOps().plan_attention(*gpu.args())
    out, lse = planned(gpu.q, gpu.keys, gpu.values, gpu.scale, shape.window, True)
    assert lse is not None
    assert (out.cpu() - expected).abs().max() < tolerance(dtype)
    assert (lse.cpu() - expected_lse).abs().max() < tolerance(dtype)


@each_dtype
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("width", [64, 100, 4096])
def test_rows_are_normed_and_gated(dtype: torch.dtype, rows: int, width: int) -> None:
    from minserve.kernels.triton import TritonOps

    ops, oracle = TritonOps(), TorchOps()
    x, residual = (torch.randn(rows, width, device="cuda").to(dtype) for _ in range(2))
    weight = torch.randn(width, device="cuda").to(dtype)
    wide = oracle.rms_norm(x.double(), weight.double(), 1e-5)
    assert (ops.rms_norm(x, weight, 1e-5) - wide).abs().max() < 4 * tolerance(dtype)
    total = residual + x
    got = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    wide = oracle.rms_norm(total.double(), weight.double(), 1e-5)
    assert (got - wide).abs().max() < 4 * tolerance(dtype)
    gate_up = torch.randn(rows, 2 * width, device="cuda").to(dtype)
    wide = oracle.silu_and_mul(gate_up.double())
    assert (ops.silu_and_mul(gate_up) - wide).abs().max() < 8 * tolerance(dtype)


@each_dtype
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_heads_are_turned_and_stored(dtype: torch.dtype, head_dim: int) -> None:
    from minserve.kernels.triton import TritonOps

    ops, oracle = TritonOps(), TorchOps()
    whole = torch.randn(50, 12, head_dim, device="cuda").to(dtype)
    angles = torch.rand(100, head_dim // 2, device="cuda") * 7
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1).to(dtype)
    positions = torch.randint(0, 100, (50,), device="cuda")
    expected = whole.double()
    oracle.rotary_(expected[:, :10], positions, cos_sin.double())
    ops.rotary_(whole[:, :10], positions, cos_sin)
    assert (whole - expected).abs().max() < 4 * tolerance(dtype)
    pages = [torch.full((9, 4, 16, head_dim), math.nan, device="cuda").to(dtype) for _ in range(4)]
    slots = torch.randperm(9 * 16, device="cuda")[:50]
    oracle.store_kv(whole[:, :4], whole[:, 4:8], pages[0], pages[1], slots)
    ops.store_kv(whole[:, :4], whole[:, 4:8], pages[2], pages[3], slots)
    torch.testing.assert_close(pages[2:], pages[:2], rtol=0, atol=0, equal_nan=True)
