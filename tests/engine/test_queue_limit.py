"""`scheduling.max_queued_requests`: who may wait, who is refused, and what a refusal leaves."""

from __future__ import annotations

import asyncio

import pytest
import torch
from engine.fakes import make_engine, oracle, run, tiny_spec

from minserve import LLM, AsyncLLM, EngineConfig, QueueFullError, SamplingParams
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import fixed_length, poisson
from minserve.build import build_virtual_engine
from minserve.hardware import DEVICES
from minserve.request import InvalidRequestError, Status
from minserve.virtual import CostModel

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)

LONG = range(1, 37)
"""A prompt of three pages."""


def engine_with(limit, places=2, blocks=64, **values):
    config = EngineConfig().with_values(
        {"scheduling.max_num_seqs": places, "scheduling.max_queued_requests": limit, **values}
    )
    return make_engine(config, num_blocks=blocks)[0]


def add(engine, name, prompt=(1, 2, 3), params=GREEDY):
    return engine.add(str(name), list(prompt), params)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_burst_fills_the_free_places_and_then_the_queue(limit):
    engine = engine_with(limit)
    for number in range(2 + limit):
        add(engine, number)
    with pytest.raises(QueueFullError, match=rf"request x: .*max_queued_requests={limit}"):
        add(engine, "x")
    requests = engine.live_requests()
    run(engine)
    assert len(requests) == 2 + limit
    assert all(each.output_token_ids == oracle([1, 2, 3], 6, True) for each in requests)
    assert engine.trace.totals.refused == 1 and engine.trace.totals.finished_requests == 2 + limit


def test_without_a_limit_all_wait():
    engine = engine_with(None)
    for number in range(50):
        add(engine, number)
    run(engine)
    assert engine.trace.totals.refused == 0 and engine.trace.totals.finished_requests == 50


def test_a_place_that_becomes_free_is_given_to_a_newcomer():
    engine = engine_with(0)
    add(engine, "a"), add(engine, "b")
    engine.step()
    for _ in range(2):
        with pytest.raises(QueueFullError):
            add(engine, "c")
    engine.abort("a")
    add(engine, "c")
    run(engine)
    assert engine.trace.totals.finished_requests == 3  # the aborted one is in it
    add(engine, "d"), add(engine, "e")  # an idle engine has all its places
    with pytest.raises(QueueFullError):
        add(engine, "f")


def test_places_without_pages_are_not_free():
    """Eight places, and pages for one request: those that wait for pages wait."""
    engine = engine_with(1, places=8, blocks=3)
    for number in range(3):
        add(engine, number, LONG)
    engine.step()
    waiting = [each for each in engine.live_requests() if each.status is Status.WAITING]
    assert len(waiting) == 2
    with pytest.raises(QueueFullError):
        add(engine, "x")


def test_after_those_left_behind_have_gone_the_places_are_free():
    engine = engine_with(0, places=2, blocks=3)
    add(engine, "a", LONG), add(engine, "b", LONG)
    engine.step()
    engine.abort("b")  # it had waited for pages
    engine.abort("a")
    add(engine, "c"), add(engine, "d")


def test_a_preempted_request_counts_and_is_never_refused():
    engine = engine_with(0, places=2, blocks=3)
    long = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    requests = add(engine, "a", range(1, 13), long) + add(engine, "b", range(1, 13), long)
    refused = False
    while engine.has_work:
        engine.step()
        if any(each.status is Status.PREEMPTED for each in requests):
            with pytest.raises(QueueFullError):
                add(engine, "c")
            refused = True
    assert refused
    for each in requests:
        assert each.output_token_ids == oracle(list(range(1, 13)), 20, True)


def test_samples_of_one_prompt_enter_together():
    engine = engine_with(1)
    several = SamplingParams(n=5, max_tokens=4, temperature=0.0, ignore_eos=True)
    assert len(add(engine, "a", params=several)) == 5
    with pytest.raises(QueueFullError):
        add(engine, "b")
    run(engine)
    assert engine.trace.totals.finished_requests == 5


def test_a_refusal_leaves_no_trace_but_the_count():
    engine = engine_with(0, places=1)
    add(engine, "a")
    before = engine.live_requests(), engine.memory.use()
    for _ in range(3):
        with pytest.raises(QueueFullError):
            add(engine, "b")
    assert (engine.live_requests(), engine.memory.use()) == before
    engine.audit()
    step = engine.step()
    assert step.num_refused == 3 and engine.step().num_refused == 0
    run(engine)
    add(engine, "b")  # the name is free


def test_a_refusal_is_a_refusal_for_callers_that_do_not_know_the_queue():
    assert issubclass(QueueFullError, InvalidRequestError)


def test_traffic_counts_who_was_refused():
    cost = CostModel(DEVICES["T4"], "float16", efficiency=0.5, overhead_s=1e-3)
    config = EngineConfig().with_values(
        {"scheduling.max_num_seqs": 2, "scheduling.max_queued_requests": 2}
    )
    engine = build_virtual_engine(tiny_spec(), config, cost)
    played = poisson([[5] * 8] * 60, [fixed_length(20)] * 60, rate_per_s=400.0)
    done = drive(engine, played)
    assert 0 < len(done.refused) < 60
    assert len(done.requests) == 60 - len(done.refused)
    served = {int(each.request_id) for each in done.requests}
    assert served.isdisjoint(done.refused) and served | set(done.refused) == set(range(60))
    assert engine.trace.totals.refused == len(done.refused)
    assert engine.trace.totals.peak_waiting <= 2 + 2
    assert not done.stopped


LIMITED = EngineConfig(device="cpu", dtype="float32").with_values(
    {"scheduling.max_num_seqs": 1, "scheduling.max_queued_requests": 1}
)
SHORT = SamplingParams(max_tokens=3, temperature=0.0)


def test_generate_raises_or_returns_the_refusal():
    torch.manual_seed(0)
    llm = LLM("zoo/draft", LIMITED, progress=False)
    with pytest.raises(QueueFullError):
        llm.generate(["a", "b", "c"], SHORT)
    outputs = llm.generate(["a", "b", "c"], SHORT, errors="return")
    assert [each.finish_reason for each in outputs] == ["length", "length", "error"]
    assert "max_queued_requests=1" in outputs[2].samples[0].error
    assert outputs[0].token_ids == llm.generate("a", SHORT)[0].token_ids


def test_a_stream_raises_the_refusal_and_the_others_end_well():
    with AsyncLLM("zoo/draft", LIMITED, progress=False) as llm:

        async def read(stream):
            return [chunk async for chunk in stream]

        async def all_of_them():
            streams = [llm.add("def f", SamplingParams(max_tokens=30)) for _ in range(6)]
            return await asyncio.gather(*map(read, streams), return_exceptions=True)

        ended = asyncio.run(all_of_them())
        refused = [each for each in ended if isinstance(each, QueueFullError)]
        assert refused and len(refused) < 5
        assert all(isinstance(each, (list, QueueFullError)) for each in ended)
        assert len(list(llm.add("def f", SHORT))) >= 1
