"""The forward benchmark times one token of each of two models, in turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.bench.runs.forward import forward_cost
from minserve.bench.workloads.shapes import SHAPES, write_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One layer of width 32, and ten of width 256."""
    small = replace(
        SHAPES["trial"], name="small", vocab_size=64, hidden_size=32, num_layers=1, num_heads=1,
        num_kv_heads=1, intermediate_size=48, max_position=512,
    )  # fmt: skip
    large = replace(
        small, name="large", hidden_size=256, num_layers=10, num_heads=8, num_kv_heads=4
    )
    folder = tmp_path_factory.mktemp("models")
    return write_checkpoint(small, folder / "small"), write_checkpoint(large, folder / "large")


def test_the_smaller_model_costs_less(models: tuple[Path, Path]) -> None:
    cost = forward_cost(*models, threads=1, context=8, tokens=8, rounds=3)
    assert cost["threads"] == 1 and cost["rounds"] == 3
    assert 0 < cost["model_us"]["min"] <= cost["model_us"]["median"] <= cost["model_us"]["max"]
    assert cost["times_cheaper"]["median"] > 2


def test_the_command_names_both_models_and_the_spread(
    models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = map(str, models)
    arguments = ["--model", large, "--against", small, "--context", "8", "--repeats", "2"]
    assert main(["bench", "forward", *arguments, "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert small in printed and large in printed and "times as much" in printed
