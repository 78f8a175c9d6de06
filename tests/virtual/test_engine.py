"""Fast-forward is single-stepping, only sooner: traces, timings and pages are compared exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine.fakes import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import TimedRequest, Traffic, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import SamplingParams
from minserve.scheduling import ContinuousBatching
from minserve.virtual import CostModel

COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=0.001)


def engine(pages=64, policy=None, **values):
    page_bytes = 16 * tiny_spec(1024).kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 8,
            "scheduling.max_num_batched_tokens": 64,
            "memory.kv_bytes": pages * page_bytes,
            **{name.replace("__", "."): value for name, value in values.items()},
        }
    )
    return build_virtual_engine(tiny_spec(1024), config, COST, parts=EngineParts(policy))


def test_modelled_time_has_no_host_to_overlap_with():
    with pytest.raises(ConfigError, match=r"async_scheduling=True hides the host's time"):
        engine(scheduling__async_scheduling=True)


def observed(built):
    """Everything a run leaves behind, but the host's own clock."""
    snapshot = built.trace.snapshot()
    return snapshot.totals, snapshot.steps, snapshot.requests, built.clock.now()


def both(traffic, **options):
    slow, fast = engine(**options), engine(**options)
    one, other = drive(slow, traffic), drive(fast, traffic, fast=True)
    assert observed(slow) == observed(fast)
    for mine, theirs in zip(one.requests, other.requests, strict=True):
        assert replace(mine).__dict__ == replace(theirs).__dict__
    fast.memory.check()
    assert fast.memory.pool.num_owned == slow.memory.pool.num_owned == 0
    return slow


@given(
    requests=st.lists(
        st.tuples(st.floats(0, 60), st.integers(1, 150), st.integers(1, 90), st.integers(0, 2)),
        min_size=1,
        max_size=14,
    ),
    pages=st.sampled_from([18, 30, 64]),
    discipline=st.sampled_from(
        [{}, {"scheduling__policy": "static"}]
        + [{"scheduling__order": order} for order in ("sjf", "priority", "mlfq")]
        + [{"scheduling__prefill": turns} for turns in ("decode_first", "prefill_first")]
        + [{"kernels__padding": kind} for kind in ("longest", "power_of_two")]
        + [{"kernels__padding": "batch", "scheduling__policy": "static"}]
    ),
    max_num_seqs=st.sampled_from([1, 3, 8]),
)
@settings(max_examples=150, deadline=None)
def test_fast_forward_is_single_stepping(requests, pages, discipline, max_num_seqs):
    timed = tuple(
        TimedRequest(gap, (1,) * prompt, fixed_length(output), priority)
        for gap, prompt, output, priority in requests
    )
    both(
        Traffic("drawn", timed, rate_per_s=1000.0, seed=0),
        pages=pages,
        scheduling__max_num_seqs=max_num_seqs,
        **discipline,
    )


def test_a_lone_writer_is_passed_over_in_one_go():
    built = engine()
    built.add("one", [1] * 20, fixed_length(500))
    built.step()
    built.step()
    assert built.fast_forward() == 497
    assert built.trace.totals.steps == 499
    built.step()
    assert not built.has_work and built.trace.totals.sampled_tokens == 500


def test_no_step_begins_once_the_time_has_come():
    built = engine()
    built.add("one", [1] * 20, fixed_length(500))
    built.step()
    built.step()
    soon = built.clock.now() + 0.0105
    steps = built.fast_forward(soon)
    assert 5 < steps < 15
    assert built.clock.now() >= soon > built.trace.newest.start_s
    assert built.fast_forward(soon) == 0


class Careful(ContinuousBatching):
    def budget(self, limit, running, waiting):
        return limit - 1


@pytest.mark.parametrize("why", ["somebody reads", "detail", "a budget of one's own", "eos"])
def test_what_has_to_be_decided_or_told_is_not_passed_over(why):
    options = {"trace__per_request": True} if why == "detail" else {}
    built = engine(policy=Careful() if "budget" in why else None, **options)
    params = fixed_length(50) if why != "eos" else SamplingParams(max_tokens=50, min_tokens=9)
    built.add("one", [1] * (300 if why == "somebody reads" else 20), params)
    built.step()
    if why != "somebody reads":
        built.step()
    assert built.fast_forward() == 0


def test_a_prefix_cache_gets_the_whole_pool_as_in_a_real_engine():
    one_at_a_time = {"scheduling__max_num_seqs": 1, "scheduling__max_model_len": 64}
    assert engine(pages=64, **one_at_a_time).memory.pool.num_blocks == 4
    cached = engine(pages=64, memory__prefix_cache="radix", **one_at_a_time)
    assert cached.memory.pool.num_blocks == 64
