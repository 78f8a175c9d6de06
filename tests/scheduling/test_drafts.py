"""Drafts take what a step would leave unused: no request waits for one or is preempted by one."""

from __future__ import annotations

import pytest
from engine.fakes import EchoProposer, make_engine, oracle, run
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.config import EngineConfig
from minserve.draft import Draft
from minserve.engine import Engine
from minserve.request import Request, SamplingParams


def engine_of(values: dict[str, object], num_blocks: int = 32) -> Engine:
    engine, _, _ = make_engine(
        EngineConfig().with_values(values), num_blocks, proposer=EchoProposer(False, 1.0)
    )
    return engine


def decoding(engine: Engine, *lengths: int, max_tokens: int = 20) -> list[Request]:
    """Requests that have their first token."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    requests = [
        engine.add(f"r{index}", [index + 1] * length, params)[0]
        for index, length in enumerate(lengths)
    ]
    engine._speculator._proposer, kept = None, engine._speculator._proposer
    while any(not request.num_output_tokens for request in requests):
        engine.step()
    engine._speculator._proposer = kept
    return requests


SMALL = {"scheduling.max_num_batched_tokens": 8, "scheduling.max_num_seqs": 4}


def test_known_tokens_come_first_then_drafts_in_order() -> None:
    engine = engine_of(SMALL)
    one, two = decoding(engine, 3, 2)
    plan = engine._scheduler.schedule(0.0, {one: Draft((1,) * 5), two: Draft((1,) * 5)})
    # 8 tokens: a known one each; of the 6 that are left, the first draft takes 5.
    assert plan.requests == [one, two] and plan.num_tokens == [6, 2]
    assert [len(plan.drafts[each]) for each in (one, two)] == [5, 1]


def test_a_prompt_that_fills_the_step_leaves_nothing() -> None:
    engine = engine_of(SMALL)
    (one,) = decoding(engine, 3)
    (long,) = engine.add("long", list(range(1, 30)), SamplingParams(max_tokens=4))
    plan = engine._scheduler.schedule(0.0, {one: Draft((1,) * 5)})
    assert plan.requests == [one, long] and plan.num_tokens == [1, 7] and not plan.drafts


def test_a_capped_prompt_leaves_the_rest() -> None:
    engine = engine_of(SMALL | {"scheduling.max_num_prefill_tokens": 3})
    (one,) = decoding(engine, 3)
    engine.add("long", list(range(1, 30)), SamplingParams(max_tokens=4))
    plan = engine._scheduler.schedule(0.0, {one: Draft((1,) * 9)})
    assert plan.num_tokens == [5, 3] and plan.drafts == {one: Draft((1,) * 4)}


def test_a_draft_without_free_pages_is_dropped() -> None:
    engine = engine_of({"memory.block_size": 2}, num_blocks=7)
    one, two = decoding(engine, 4, 4, max_tokens=8)  # three pages each: one is free
    plan = engine._scheduler.schedule(0.0, {one: Draft((1,) * 4), two: Draft((1,) * 3)})
    assert plan.num_tokens == [1, 4] and plan.drafts == {two: Draft((1,) * 3)}
    assert not plan.preempted and engine.memory.pool.num_available == 0


def test_a_draft_of_a_request_that_is_not_planned_is_ignored() -> None:
    engine = engine_of({})
    one, two = decoding(engine, 4, 4)
    engine.abort(two.request_id)
    plan = engine._scheduler.schedule(0.0, {two: Draft((1,))})
    assert plan.requests == [one] and not plan.drafts


def test_a_draft_of_a_request_that_lost_its_pages_meanwhile_is_ignored() -> None:
    engine = engine_of({})
    one, two = decoding(engine, 4, 4)
    drafts = {each: Draft((1, 2)) for each in (one, two)}
    engine._scheduler._preempt(two, 0.0)
    plan = engine._scheduler.schedule(0.0, drafts)
    assert plan.requests == [one, two] and plan.num_tokens == [3, two.num_tokens]
    assert plan.drafts == {one: drafts[one]}


def test_a_draft_has_pages_behind_tokens_in_flight() -> None:
    """A request that comes back after a preemption: its old tokens are in flight, its newest one
    and its draft are planned on top of them."""
    engine, runner, _ = make_engine(
        EngineConfig().with_values(
            SMALL | {"memory.block_size": 1, "scheduling.async_scheduling": True}
        ),
        proposer=EchoProposer(False, 1.0),
    )
    (request,) = decoding(engine, 7)
    engine.settle()
    assert request.num_tokens == 9  # one more than fits into a step
    engine._scheduler._preempt(request, 0.0)
    before = len(runner.batches)
    engine.step()
    recomputed, verified = runner.batches[before : before + 2]
    assert recomputed.query_lens == (8,) and recomputed.num_samples == 0
    assert verified.query_lens[0] > 1, "no draft was made"
    run(engine)
    assert (request.error, request.output_token_ids) == (None, oracle([1] * 7, 20, True))


@pytest.mark.parametrize("trees", [False, True])
def test_accepted_tokens_count_as_recomputed_after_a_preemption(trees: bool) -> None:
    engine, _, _ = make_engine(
        EngineConfig().with_values({"memory.prefix_cache": "off"}),
        proposer=EchoProposer(trees, 1.0),
    )
    (request,) = decoding(engine, 5)
    while request.num_accepted_tokens < 4:
        engine.step()
    computed = request.num_computed_tokens
    assert computed == request.num_tokens - 1
    engine._scheduler._preempt(request, 0.0)
    run(engine)
    assert request.output_token_ids == oracle([1] * 5, 20, True)
    assert engine.trace.totals.recomputed_tokens == computed


def test_an_error_while_a_draft_gets_pages_ends_its_own_request(monkeypatch) -> None:
    engine = engine_of(SMALL)
    one, two = decoding(engine, 3, 2)
    reserve = engine.memory.reserve

    def fails(request: Request, num_tokens: int) -> bool:
        if request is two and num_tokens > 1:
            raise OSError("the host tier is full")
        return reserve(request, num_tokens)

    monkeypatch.setattr(engine.memory, "reserve", fails)
    with pytest.raises(OSError, match="host tier"):
        run(engine)
    run(engine)
    assert isinstance(two.cause, OSError)
    assert (one.finish_reason, one.output_token_ids) == ("length", oracle([1] * 3, 20, True))
    assert engine.memory.pool.num_owned == 0


def test_an_error_after_the_drafts_belongs_to_no_request(monkeypatch) -> None:
    engine = engine_of(SMALL)
    requests = decoding(engine, 3, 2)

    def fails(running: object) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(engine._scheduler._policies.batching, "idle_places", fails)
        engine.step()
    assert [type(request.cause) for request in requests] == [ZeroDivisionError] * 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    blocks=st.integers(8, 30),
    budget=st.integers(4, 40),
    rightness=st.sampled_from([0.0, 0.5, 1.0]),
    order=st.sampled_from(["fcfs", "sjf", "mlfq"]),
)
def test_wrong_drafts_change_no_step(
    lengths: list[int], blocks: int, budget: int, rightness: float, order: str
) -> None:
    """The same requests are admitted and preempted at the same steps as without them."""
    found = []
    for proposer in (None, EchoProposer(False, rightness)):
        engine, _, _ = make_engine(
            EngineConfig().with_values(
                {
                    "memory.block_size": 2,
                    "scheduling.max_num_batched_tokens": budget,
                    "scheduling.max_num_seqs": 4,
                    "scheduling.max_model_len": min(32, 2 * blocks),
                    "scheduling.order": order,
                }
            ),
            blocks,
            proposer=proposer,
        )
        params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
        requests = [
            request
            for index, length in enumerate(lengths)
            if length + 6 <= engine.max_request_tokens
            for request in engine.add(f"r{index}", [index + 1] * length, params)
        ]
        run(engine)
        for request in requests:
            assert request.output_token_ids == oracle(request.prompt_token_ids, 6, True)
        found.append((engine.trace.totals.preemptions, engine.trace.totals.steps))
    if rightness == 0.0:
        assert found[1] == found[0], "a wrong draft delayed a request"


@pytest.mark.parametrize("trees", [False, True])
def test_a_draft_ends_where_its_request_does(trees: bool) -> None:
    """A request of the greatest length may not write beyond its block table."""
    config = {"memory.block_size": 4, "scheduling.max_model_len": 12}
    engine, runner, _ = make_engine(
        EngineConfig().with_values(config), proposer=EchoProposer(trees, 1.0)
    )
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    (request,) = engine.add("r", [5, 6], params)
    run(engine)
    assert request.output_token_ids == oracle([5, 6], 10, True)
    assert max(max(batch.context_lens) for batch in runner.batches) <= 12
