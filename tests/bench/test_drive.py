"""Traffic played by a clock: arrivals, a rate that changes, a stop, and a modelled device."""

from __future__ import annotations

import pytest
from engine.fakes import make_engine, oracle, tiny_spec

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length, poisson
from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig
from minserve.hardware import WorkCounter, find_device, roofline
from minserve.virtual import CostModel

PROMPTS = [[1 + i % 90] * (5 + i % 7) for i in range(200)]
PARAMS = [fixed_length(6)] * len(PROMPTS)


def test_poisson_gaps_have_the_mean_and_spread_of_an_exponential():
    traffic = poisson([[1]] * 4001, [fixed_length(1)] * 4001, rate_per_s=5.0, seed=1)
    gaps = [request.gap for request in traffic.requests[1:]]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert traffic.requests[0].gap == 0
    assert mean == pytest.approx(1.0, abs=0.05)
    assert variance == pytest.approx(1.0, abs=0.15)
    assert traffic == poisson([[1]] * 4001, [fixed_length(1)] * 4001, rate_per_s=5.0, seed=1)


def test_requests_arrive_at_their_times_and_are_answered_right():
    engine, _, _ = make_engine()
    traffic = poisson(PROMPTS, PARAMS, rate_per_s=50.0, seed=3)
    result = drive(engine, traffic)
    assert not result.stopped
    arrivals = [request.arrival_s for request in result.requests]
    due = 0.0
    for arrival, timed in zip(arrivals, traffic.requests, strict=True):
        due += timed.gap / 50.0
        assert arrival == pytest.approx(due)
    for request in result.requests:
        assert request.first_scheduled_s >= request.arrival_s
        assert request.output_token_ids == oracle(request.prompt_token_ids, 6, ignore_eos=True)


def test_modelled_time_jumps_to_an_arrival_that_is_far_away():
    """Weeks between two requests were millions of turns of a tenth of a second."""
    engine, _, clock = make_engine()
    turns = []
    clock.wait_until = lambda deadline_s, wait=clock.wait_until: turns.append(wait(deadline_s))
    traffic = poisson(PROMPTS[:5], PARAMS[:5], rate_per_s=1e-6, seed=3)
    result = drive(engine, traffic, should_stop=lambda: len(turns) > 100)
    assert not result.stopped and len(turns) <= 5
    assert result.duration_s > 1e6


def test_a_rate_that_doubles_half_way_shortens_the_rest():
    traffic = poisson(PROMPTS, PARAMS, rate_per_s=2.0, seed=3)
    engine, _, clock = make_engine()
    slow = drive(engine, traffic)
    engine, _, clock = make_engine()
    middle = slow.requests[100].arrival_s
    fast = drive(engine, traffic, rate_per_s=lambda: 2.0 if clock.now() < middle else 4.0)
    assert fast.requests[99].arrival_s == pytest.approx(slow.requests[99].arrival_s)
    second_half = slow.requests[-1].arrival_s - middle
    assert fast.requests[-1].arrival_s - middle == pytest.approx(second_half / 2, rel=0.05)


def test_a_stop_aborts_what_runs_and_frees_its_pages():
    engine, _, _ = make_engine()
    steps = []
    result = drive(
        engine,
        at_once(PROMPTS, PARAMS),
        should_stop=lambda: len(steps) >= 3,
        on_step=steps.append,
    )
    assert result.stopped
    assert len(steps) == 3
    assert not engine.has_work
    assert engine.memory.pool.num_owned == 0


def test_params_must_match_the_prompts():
    with pytest.raises(ValueError, match="2 prompts and 1 SamplingParams"):
        at_once([[1], [2]], [fixed_length(1)])
    with pytest.raises(ValueError, match="expected a positive rate"):
        poisson([[1]], [fixed_length(1)], rate_per_s=0)


def test_a_virtual_engine_charges_the_roofline_of_every_step():
    spec = tiny_spec()
    cost = CostModel(find_device("H100 SXM"), efficiency=0.5, overhead_s=1e-3)
    engine = build_virtual_engine(spec, EngineConfig(), cost)
    result = drive(engine, at_once(PROMPTS[:40], PARAMS[:40]))
    assert engine.trace.header.provenance == "modelled"
    assert "H100" in engine.trace.header.device
    expected = sum(
        roofline(step.work, cost.device, "bfloat16").bound_s / 0.5 + 1e-3
        for step in engine.trace.steps
    )
    assert result.duration_s == pytest.approx(expected)
    assert engine.clock.now() == pytest.approx(expected)
    assert all(request.num_output_tokens == 6 for request in result.requests)
    counted = WorkCounter(spec, 2).count((5,), (5,), 1)
    assert engine.trace.steps[0].work.flops > counted.flops


def test_a_virtual_engine_sizes_its_pool_from_the_modelled_memory():
    config = EngineConfig().with_values({"scheduling.max_num_seqs": 4})
    engine = build_virtual_engine(tiny_spec(), config, CostModel(find_device("T4"), "float16"))
    assert engine.memory.pool.num_blocks == 4 * 8
    huge = EngineConfig().with_values({"memory.gpu_memory_utilization": 0.05})
    with pytest.raises(ConfigError, match="do not fit"):
        spec = SHAPES["llama-2-7b"].spec()
        build_virtual_engine(spec, huge, CostModel(find_device("T4"), "float16"))


def test_a_cost_model_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match="efficiency above 0"):
        CostModel(find_device("T4"), efficiency=0)
