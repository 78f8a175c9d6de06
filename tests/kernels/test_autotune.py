"""Autotuning with a timer that lies: what is picked, what is kept, and when it is looked for again.

Nothing here is measured, and nothing but the interpreter's own test runs a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from minserve.config import ConfigError, EngineConfig, resolve
from minserve.kernels.triton.analysis import autotune
from minserve.kernels.triton.analysis.autotune import (
    Workload,
    ragged_candidates,
    split_candidates,
    tune,
)
from minserve.kernels.triton.analysis.resources import Resources, Variant
from minserve.kernels.triton.tuning import Heads, Tile, Tuning
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

HEADS = Heads(16, 4, 2)
CPU = torch.device("cpu")
SMALL = Workload(requests=2, context=8, block_size=4)


class Bench:
    """A timer for which `favourite` is the fastest, and a compiler of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, favourite: Callable[[Tile], bool]) -> None:
        self.favourite = favourite
        self.timed: list[Tile] = []
        self.spilling: Callable[[Variant], bool] = lambda variant: False
        self.shared_bytes = 1 << 10
        for kind in ("prefill", "decode"):
            monkeypatch.setattr(autotune._Trial, kind, lambda _, tuning: tuning)

    def timer(self, call: Callable[[], Any]) -> float:
        tuning = call()
        (tile,) = (tuning.ragged or tuning.split).values()
        self.timed.append(tile)
        return 1.0 if self.favourite(tile) else 2.0

    def compiler(self, variant: Variant, capability: int) -> Resources:
        assert capability == 90
        return Resources(64, 8 if self.spilling(variant) else 0, self.shared_bytes)

    def tune(self) -> Tuning:
        return tune(HEADS, 1, torch.float32, CPU, self.timer, self.compiler, SMALL)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    return Bench(monkeypatch, lambda tile: tile.keys == 64 and tile.warps == 8)


def test_the_fastest_candidate_is_taken_for_each_kernel(bench: Bench) -> None:
    found = bench.tune()
    ragged, split = found.ragged_tile(HEADS), found.split_tile(HEADS, 90)
    assert (ragged.keys, ragged.warps) == (split.keys, split.warps) == (64, 8)
    # 8 warps of 64 registers: 16 K of 64 K registers for a program.
    assert split.programs == 4
    timed = len(bench.timed)
    assert timed == len([*ragged_candidates(HEADS), *split_candidates(HEADS, 90)])
    other = Heads(64, 2, 4)
    assert found.ragged_tile(other) == Tuning().ragged_tile(other)


def test_a_second_engine_reads_what_the_first_one_found(bench: Bench) -> None:
    first = bench.tune()
    bench.timed.clear()
    assert bench.tune() == first and not bench.timed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 0}',
        '{"version": 1, "ragged": {}}',
        '{"version": 1, "ragged": 3, "split": null}',
    ],
)
def test_a_file_that_cannot_be_read_is_written_again(bench: Bench, tmp_path: Path, content) -> None:
    first = bench.tune()
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    bench.timed.clear()
    assert bench.tune() == first and bench.timed
    bench.timed.clear()
    assert bench.tune() == first and not bench.timed


def test_other_kernels_or_another_device_are_timed_anew(bench: Bench, monkeypatch) -> None:
    bench.tune()
    bench.timed.clear()
    monkeypatch.setattr(autotune, "source_hash", lambda: "another text")
    bench.tune()
    assert bench.timed
    paths = {
        autotune.cache_path(heads, kv_heads, dtype, CPU)
        for heads in (HEADS, Heads(16, 4, 4))
        for kv_heads in (1, 2)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(paths) == 8


def test_a_directory_that_cannot_be_written_costs_only_the_repetition(
    bench: Bench, monkeypatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "file"))
    first = bench.tune()
    bench.timed.clear()
    assert bench.tune() == first and bench.timed


def test_what_spills_or_does_not_fit_is_not_timed(bench: Bench) -> None:
    bench.spilling = lambda variant: variant.num_warps == 8
    bench.tune()
    assert bench.timed and all(tile.warps != 8 for tile in bench.timed)


def test_where_nothing_fits_the_defaults_stay(bench: Bench) -> None:
    bench.shared_bytes = 1 << 20
    found = bench.tune()
    assert not bench.timed
    assert asdict(found.split_tile(HEADS, 90)) == asdict(Tuning().split_tile(HEADS, 90))


def test_a_cpu_has_nothing_to_tune_and_says_so() -> None:
    from engine.fakes import tiny_spec

    config = EngineConfig(device="cpu").with_values({"kernels.autotune": True})
    with pytest.raises(
        ConfigError, match=r"kernels.autotune=True .* device='cpu' .* use autotune=F"
    ):
        resolve(config, tiny_spec())


def test_a_model_is_tuned_when_every_shape_of_its_heads_is_on_disk(bench: Bench) -> None:
    layers = tuple(
        LayerSpec(AttentionSpec(heads, 1, 16), FeedForwardSpec(16)) for heads in (2, 4, 2)
    )
    spec = ModelSpec("llama", 97, 16, layers, 1e-5, 128, True)
    assert autotune.head_shapes(spec, torch.float32) == {HEADS: 1, Heads(16, 4, 4): 1}
    assert not autotune.is_tuned(spec, torch.float32, CPU)
    bench.tune()
    assert not autotune.is_tuned(spec, torch.float32, CPU), "one of two"
    small = ModelSpec("llama", 97, 16, layers[:1], 1e-5, 128, True)
    assert autotune.is_tuned(small, torch.float32, CPU)
    assert not autotune.is_tuned(small, torch.float16, CPU)
