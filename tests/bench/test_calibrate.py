"""The fitted clock: it finds the price that made the times, survives outliers, and is kept."""

from __future__ import annotations

import random

import pytest
from engine.fakes import tiny_spec

from minserve.bench.metrics import pooled, serve_result
from minserve.bench.modelling import calibrate
from minserve.bench.modelling.fitted_cost import FittedCost, Machine, fit
from minserve.bench.runs.serve import run_of
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import fixed_length, poisson
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.trace import StepWork

HERE = Machine("a processor", "tiny", 1, "2", "2026-11-21")


class Price:
    """A machine whose price is known, rows being cheap up to 8 and dearer beyond, and which now
    and then does something else."""

    device = DEVICES["A100 80GB SXM"]
    dtype = "float32"

    def __init__(self, outliers: float = 0.0, seed: int = 0) -> None:
        self._outliers, self._draw = outliers, random.Random(seed)

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        rows = 1e-5 * num_tokens + 4e-5 * max(0, num_tokens - 8)
        seconds = 1e-3 + rows + 1e-9 * work.attention_flops + 2e-5 * num_requests
        return seconds * (10.0 if self._draw.random() < self._outliers else 1.0)


def recorded(price, seed=0, requests=60):
    draw = random.Random(seed)
    prompts = [[5] * draw.randint(1, 80) for _ in range(requests)]
    params = [fixed_length(draw.randint(2, 40)) for _ in range(requests)]
    config = EngineConfig().with_values({"scheduling.max_num_seqs": 16})
    engine = build_virtual_engine(tiny_spec(), config, price)
    return engine, drive(engine, poisson(prompts, params, 30.0, seed=seed))


@pytest.mark.parametrize("outliers", [0.0, 0.04])
def test_the_fit_finds_the_price_whatever_the_neighbours_do(outliers):
    engine, _ = recorded(Price(outliers))
    cost = fit(engine.trace.steps, HERE, "float32")
    # A step counts for at most twice its price when the whole is scaled.
    assert cost.median_error < 0.01 + outliers
    for step in recorded(Price(), seed=9)[0].trace.steps:
        want = step.duration_s
        assert cost.step_s(step.work, step.num_tokens, step.num_scheduled) == pytest.approx(
            want, rel=0.1
        )


def test_a_virtual_run_on_the_fit_repeats_a_run_it_never_saw():
    cost = fit(recorded(Price())[0].trace.steps, HERE, "float32")
    there = serve_result(run_of(*recorded(Price(), seed=5)))
    modelled = serve_result(run_of(*recorded(cost, seed=5)))
    for name, promise in calibrate.PROMISES.items():
        assert modelled[name] == pytest.approx(there[name], rel=promise / 2), name


def test_a_calibration_is_kept_and_read_back(tmp_path):
    cost = fit(recorded(Price())[0].trace.steps, HERE, "float32")
    cost.save(tmp_path / "here" / "steps.json")
    text = (tmp_path / "here" / "steps.json").read_text()
    assert FittedCost.from_json(text) == cost
    with pytest.raises(ValueError, match="of another version"):
        FittedCost.from_json(text.replace('"version": 2', '"version": 1'))
    with pytest.raises(ValueError, match="5 steps, expected at least 100"):
        fit(recorded(Price())[0].trace.steps[:5], HERE, "float32")


def test_a_promise_is_kept_on_both_sides_of_the_truth_or_broken():
    row = calibrate.Checked("median_ttft_ms", 100.0, 109.0, 0.10)
    assert row.kept and row.error == pytest.approx(0.09)
    assert calibrate.Checked("x", 100.0, 91.0, 0.10).kept
    assert not calibrate.Checked("x", 100.0, 111.0, 0.10).kept
    assert not calibrate.Checked("x", 100.0, 89.0, 0.10).kept


def test_rounds_are_one_long_run():
    first, second = (run_of(*recorded(Price(), seed=seed, requests=20)) for seed in (1, 2))
    both = pooled([first, second])
    assert both.duration_s == first.duration_s + second.duration_s
    assert both.token_ids == first.token_ids + second.token_ids
    assert serve_result(both)["completed"] == 40
    slowest = max(one.ttft_s for one in first.metrics + second.metrics)
    assert max(one.ttft_s for one in both.metrics) == slowest
