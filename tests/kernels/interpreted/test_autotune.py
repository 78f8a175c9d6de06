"""Every way of launching attention that autotuning may choose gives the reference's results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernels.ragged import Shape, build, dense_attention, tolerance

from minserve.kernels.triton import TritonOps
from minserve.kernels.triton.analysis.autotune import (
    Workload,
    ragged_candidates,
    split_candidates,
    tune,
)
from minserve.kernels.triton.analysis.resources import Resources
from minserve.kernels.triton.tuning import Heads, Tile, Tuning

HEADS = Heads(16, 4, 2)
CHUNK = Shape((5, 1, 9), (40, 7, 9), 4, 1, 2, 16, None, 0)
DECODE = Shape((1, 1), (300, 5), 16, 1, 2, 16, None, 1)


def check(shape: Shape, tuning: Tuning) -> None:
    batch = build(shape, torch.float32)
    expected, expected_lse = dense_attention(batch)
    planned = TritonOps(tuning=tuning).plan_attention(*batch.args())
    out, lse = planned(batch.q, batch.keys, batch.values, batch.scores, True)
    assert lse is not None
    assert (out - expected).abs().max() < tolerance(torch.float32)
    assert (lse - expected_lse).abs().max() < tolerance(torch.float32)


@pytest.mark.parametrize("tile", list(ragged_candidates(HEADS)), ids=str)
def test_chunks(tile: Tile) -> None:
    check(CHUNK, Tuning(ragged={HEADS: tile}))


@pytest.mark.parametrize("tile", list(split_candidates(HEADS, 90)), ids=str)
def test_decodes(tile: Tile) -> None:
    programs = tile.programs or 16
    check(DECODE, Tuning(split={HEADS: Tile(0, tile.keys, tile.warps, tile.stages, programs)}))


def test_what_is_timed_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A timer that calls each candidate once, and takes the last one for the fastest."""
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    shapes = []

    def timer(call):
        shapes.append(call().shape)
        return -len(shapes)

    found = tune(
        HEADS,
        1,
        torch.float32,
        torch.device("cpu"),
        timer,
        lambda variant, capability: Resources(64, 0, 1 << 10),
        Workload(requests=2, context=8, block_size=4),
    )
    assert set(shapes) == {(8, 2, 16), (2, 2, 16)}
    assert found.ragged_tile(HEADS) == list(ragged_candidates(HEADS))[-1]
