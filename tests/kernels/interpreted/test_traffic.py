"""The bytes that the Triton kernels move, counted in the interpreter, against the least possible.

Memory bytes are 32-byte sectors, each once per launch: what memory must move where the caches keep
what a launch reads again. float16, rows that fill their sectors, contexts of 768 and 1,024 tokens.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from minserve.bench.counts.launches import run_step, step_launches
from minserve.kernels.cases import CONTEXTS, HEAD_DIM, HEADS, KV_HEADS, PROCESSORS, cases
from minserve.kernels.counts import least
from minserve.kernels.counts.launches import LabelledOps, LaunchCounter, Total, by_operator
from minserve.kernels.triton import TritonOps
from minserve.kernels.triton.analysis.traffic import Traffic, watch
from minserve.models import random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

CASES = {case.name: case for case in cases()}
SPENT = 1.10
"""How much more than the least a kernel may move."""


def counted(name: str, processors: int = PROCESSORS) -> Traffic:
    with watch() as traffic:
        CASES[name].run(TritonOps(processors))
    return traffic


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_moves_hardly_more_than_the_least_possible(name: str) -> None:
    memory, fewest = counted(name).memory, CASES[name].least
    assert 1.0 <= memory.total / fewest.total <= SPENT
    assert memory.written >= fewest.written and memory.read >= fewest.read - 32


def test_contexts_stay_whole_where_asked() -> None:
    case = CASES["attention, decode"]
    with watch() as traffic:
        whole, _ = case.run(TritonOps(PROCESSORS, split=False))
    (launch,) = traffic.launches
    assert launch.programs == len(CONTEXTS) * KV_HEADS
    parts, _ = case.run(TritonOps(PROCESSORS))
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-3)


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_decode_attention_pays_for_its_parts_and_stays_near_the_least(
    splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel and merge together: each part is written in float32, and read again; one part is the
    result, and nothing is merged."""
    monkeypatch.setattr("minserve.kernels.triton.ops.num_splits", lambda *_: splits)
    traffic = counted("attention, decode")
    assert len(traffic.launches) == min(splits, 2)
    assert traffic.launches[0].programs == len(CONTEXTS) * KV_HEADS * splits
    if splits > 1:
        parts = sum(launch.tensors["parts"].memory.written for launch in traffic.launches)
        assert parts == len(CONTEXTS) * HEADS * splits * HEAD_DIM * 4
    expected = sum(
        least.split_attention(1, HEADS, KV_HEADS, HEAD_DIM, context, splits, 2).total
        for context in CONTEXTS
    )
    # What the formula leaves out: block tables, lengths, and queries by every part.
    assert 1.0 <= traffic.memory.total / expected < 1.01
    assert traffic.memory.total / CASES["attention, decode"].least.total <= SPENT


def test_what_the_caches_keep_is_requested_again_and_moved_once() -> None:
    (launch,) = counted("rms norm").launches
    weight = launch.tensors["weight"]
    assert weight.requested.read == launch.programs * weight.memory.read
    assert weight.memory.written == 0


@triton.jit
def every_nth_kernel(x, out, count, step, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place * step, place < count, other=0.0), place < count)


def test_a_sector_is_moved_whole_and_masked_lanes_are_not() -> None:
    x, out = torch.zeros(256, dtype=torch.float16), torch.zeros(16, dtype=torch.float16)
    with watch() as traffic:
        every_nth_kernel[(1,)](x, out, 10, 8, BLOCK=16)
        every_nth_kernel[(1,)](x, out, 10, 16, BLOCK=16)
    near, far = traffic.launches
    assert near.requested == far.requested == (20, 20)
    # Ten numbers of two bytes each, 16 bytes apart: two to a sector; 32 apart: one.
    assert near.memory == (5 * 32, 32) and far.memory == (10 * 32, 32)


def test_an_access_outside_of_all_tensors_is_an_error() -> None:
    x, out = torch.zeros(8, dtype=torch.float16), torch.zeros(16, dtype=torch.float16)
    with watch(), pytest.raises(Exception, match="outside all of its arguments"):
        every_nth_kernel[(1,)](x, out, 16, 1 << 30, BLOCK=16)


def test_watching_ends_with_the_block() -> None:
    with watch() as traffic:
        pass
    CASES["rms norm"].run(TritonOps(1))
    assert traffic.launches == [] and traffic.memory.total == 0


def test_a_step_of_a_model_moves_hardly_more_than_with_the_least_operators() -> None:
    """The whole decoder on Triton: its launches are those the bound counts, and its bytes, matrix
    products included, are within a tenth."""
    layer = LayerSpec(AttentionSpec(4, 2, 32), FeedForwardSpec(96))
    spec = ModelSpec(
        family="llama", vocab_size=64, hidden_size=128, layers=(layer, layer), norm_eps=1e-5,
        max_position=512, tie_embeddings=True, dtype="float16",
    )  # fmt: skip
    lens = [1, 1], [300, 260]
    fewest = step_launches(spec, "fused", *lens, "float16")
    counter = LaunchCounter("cpu")
    with watch() as traffic:
        ops = LabelledOps(TritonOps(1), counter)
        run_step(spec, random_weights(spec, torch.float16), ops, *lens, counter)
    torchs = [each for each in counter.launches if each.operator in ("linear", "")]
    assert len(torchs) + len(traffic.launches) == len(fewest)
    moved = traffic.memory.total + Total.of(torchs).moved.total
    assert 1.0 <= moved / Total.of(fewest).moved.total <= SPENT
    assert set(by_operator(fewest)) >= {"linear", "attention", "rotary_store_"}
