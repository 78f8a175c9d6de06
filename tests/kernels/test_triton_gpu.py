"""The Triton kernels on a GPU: the formats that serve, against float64, memory poisoned first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from kernels.drawn import GPU_EPSILON, batches, check_drawn, examples, sampling_batch
from kernels.ragged import SOFTCAPS, Paged, Shape, build, dense_attention, grown, shapes, tolerance

from minserve.batch import SamplingBatch, to_device
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
@given(shape=shapes(softcaps=SOFTCAPS))
@settings(max_examples=examples(60), deadline=None)
def test_attention_is_its_definition(dtype: torch.dtype, shape: Shape) -> None:
    from minserve.kernels.triton import TritonOps

    batch = build(shape, dtype)
    expected, expected_lse = dense_attention(batch)
    gpu = on_gpu(batch)
    poison()
    planned = TritonOps().plan_attention(*gpu.args())
    out, lse = planned(gpu.q, gpu.keys, gpu.values, gpu.scores, True)
    assert lse is not None
    assert (out.cpu() - expected).abs().max() < tolerance(dtype)
    assert (lse.cpu() - expected_lse).abs().max() < tolerance(dtype)


@each_dtype
@given(shape=shapes(softcaps=SOFTCAPS).flatmap(grown))
@settings(max_examples=examples(40), deadline=None)
def test_trees_see_their_branches_only(dtype: torch.dtype, shape: Shape) -> None:
    from minserve.kernels.triton import TritonOps

    batch = build(shape, dtype)
    expected, expected_lse = dense_attention(batch)
    gpu = on_gpu(batch)
    poison()
    planned = TritonOps().plan_attention(*gpu.args())
    out, lse = planned(gpu.q, gpu.keys, gpu.values, gpu.scores, True)
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
    chosen = torch.randint(0, rows, (5,), device="cuda")
    poison()
    assert torch.equal(ops.rms_norm_rows(total, chosen, weight, 1e-5), got[chosen])
    gate_up = torch.randn(rows, 2 * width, device="cuda").to(dtype)
    for name in ("silu_and_mul", "gelu_and_mul"):
        wide = getattr(oracle, name)(gate_up.double())
        assert (getattr(ops, name)(gate_up) - wide).abs().max() < 8 * tolerance(dtype)


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


@each_dtype
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("heads", [(5, 1), (32, 8), (64, 8)], ids=str)
@pytest.mark.parametrize("head_dim", [16, 18, 64, 128, 256])
def test_heads_are_normed_turned_and_stored_in_one_go(
    dtype: torch.dtype, head_dim: int, heads: tuple[int, int], normed: bool
) -> None:
    from minserve.kernels.triton import TritonOps

    num_heads, kv_heads = heads
    generator = torch.Generator().manual_seed(head_dim)
    whole = torch.randn(50, num_heads + 2 * kv_heads + 1, head_dim, generator=generator)
    whole = whole.to("cuda", dtype)
    angles = torch.rand(100, head_dim // 2, generator=generator).cuda() * 7
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(0, 100, (50,), generator=generator).cuda()
    norms = [torch.rand(head_dim, generator=generator).to("cuda", dtype) for _ in range(2 * normed)]
    size = (9, kv_heads, 16, head_dim)
    pages = [torch.full(size, math.nan, device="cuda").to(dtype) for _ in range(2)]
    slots = torch.randperm(9 * 16, generator=generator)[:50].cuda()
    wide, expected = whole.double(), [page.double() for page in pages]
    TorchOps().rotary_store_(
        wide[:, 1:], positions, cos_sin.double(), *expected, slots,
        *[norm.double() for norm in norms], eps=1e-5,
    )  # fmt: skip
    TritonOps().rotary_store_(whole[:, 1:], positions, cos_sin, *pages, slots, *norms, eps=1e-5)
    error = 4 * tolerance(dtype)
    turned = slice(0, num_heads + 1)
    torch.testing.assert_close(whole[:, turned].double(), wide[:, turned], rtol=0, atol=error)
    for page, wanted in zip(pages, expected, strict=True):
        torch.testing.assert_close(page.double(), wanted, rtol=0, atol=error, equal_nan=True)


@each_dtype
@given(drawn=batches([1, 33, 2049, 32_000, 151_936], most_rows=40))
@settings(max_examples=examples(40), deadline=None)
def test_sampling_is_its_definition(
    dtype: torch.dtype, drawn: tuple[torch.Tensor, SamplingBatch]
) -> None:
    from minserve.kernels.triton.sample import sample

    logits, batch = drawn[0].to("cuda", dtype), to_device(drawn[1], torch.device("cuda"))
    poison()
    check_drawn(logits, batch, *sample(logits, batch), GPU_EPSILON)


@each_dtype
def test_many_uniforms_draw_what_the_torch_sampler_draws(dtype: torch.dtype) -> None:
    from minserve.kernels.triton.sample import sample

    rows = [(0.8, 0, 1.0, 0.0), (1.3, 40, 1.0, 0.0), (1.0, 0, 0.9, 0.0), (1.0, 50, 0.9, 0.02)] * 250
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(len(rows), 5000, generator=generator) * 2).to("cuda", dtype)
    uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    batch = to_device(sampling_batch(rows, uniforms), torch.device("cuda"))
    check_drawn(logits, batch, *sample(logits, batch), GPU_EPSILON)
