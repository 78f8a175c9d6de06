"""A step is planned while the one before it is in flight: nothing is computed on a wrong token, no
page is lost, and a request that ends meanwhile affects no other. The device runs as late as it can
here."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from engine.fakes import EOS, TOKEN_BYTES, VOCAB, EchoRunner, make_engine, oracle, run

from minserve.config import ConfigError, EngineConfig
from minserve.engine import Engine
from minserve.memory import TransferOrder
from minserve.request import Request, SamplingParams

PROMPTS = [[(7 * i + 3 * j) % (VOCAB - 1) + 1 for j in range(9 + i % 5)] for i in range(5)]


def overlapping(num_blocks: int = 32, **values: Any) -> tuple[Engine, EchoRunner]:
    settings = {path.replace("__", "."): value for path, value in values.items()}
    settings |= {"scheduling.async_scheduling": True, "memory.check_integrity": True}
    engine, runner, _ = make_engine(EngineConfig().with_values(settings), num_blocks, lazy=True)
    return engine, runner


def add(engine: Engine, count: int = 5, max_tokens: int = 12, **values: Any) -> list[Request]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, **values)
    return [engine.add(str(i), p, params)[0] for i, p in enumerate(PROMPTS[:count])]


def expect_oracle(requests: list[Request]) -> None:
    """Whoever was not stopped from outside has exactly the oracle's tokens; the others a part."""
    for request in requests:
        params = request.params
        tokens = oracle(request.prompt_token_ids, params.max_tokens or 0, params.ignore_eos)
        if request.finish_reason in ("abort", "error"):
            tokens = tokens[: request.num_output_tokens]
        assert request.output_token_ids == tokens


def test_a_batch_is_submitted_before_the_one_before_it_is_collected():
    engine, runner = overlapping()
    requests = add(engine)
    ahead = []
    while engine.has_work:
        engine.step()
        ahead.append(len(runner.batches) - runner.num_collected)
    assert ahead[0] == 1 and ahead[-1] == 0 and set(ahead) == {0, 1}
    pending = [0 if b.pending is None else b.pending.shape[1] for b in runner.batches]
    assert pending[0] == 0 and max(pending) == 5
    expect_oracle(requests)


def test_without_the_switch_every_batch_is_collected_at_once():
    engine, runner, _ = make_engine()
    add(engine)
    while engine.has_work:
        engine.step()
        assert len(runner.batches) == runner.num_collected
    assert all(batch.pending is None for batch in runner.batches)
    assert engine.trace.totals.discarded_tokens == 0


@pytest.mark.parametrize("boundary", range(14))
def test_abort_at_every_boundary_frees_pages_once_and_leaves_others_alone(boundary):
    engine, _ = overlapping(scheduling__max_num_seqs=3)
    requests = add(engine, ignore_eos=True)
    for _ in range(boundary):
        engine.step()
    for name in ("0", "3"):
        engine.abort(name)
        engine.memory.check()
    run(engine)
    expect_oracle(requests)
    assert {r.finish_reason for r in requests[1:3]} == {"length"}
    assert engine.memory.pool.num_owned == 0


@pytest.mark.parametrize("boundary", range(12))
def test_a_page_freed_by_an_abort_goes_to_another_request_while_it_is_in_flight(boundary):
    """The pool holds two: the third gets the pages that the aborted one's last pass writes to."""
    engine, runner = overlapping(6, memory__block_size=8, memory__watermark=0.0)
    requests = add(engine, 3, ignore_eos=True)
    for _ in range(boundary):
        engine.step()
    held = set(engine.memory.blocks_of(requests[0]))
    engine.abort("0")
    run(engine)
    later = {block for batch in runner.batches[boundary:] for block in batch.groups[0].slots // 8}
    assert not held or held & {int(block) for block in later}
    expect_oracle(requests)


@pytest.mark.parametrize("token", range(1, 30))
def test_a_request_that_ends_by_its_token_is_computed_once_too_often_and_not_read(token):
    engine, _ = overlapping()
    requests = add(engine, max_tokens=20, stop_token_ids=[token, EOS])
    run(engine)
    for request in requests:
        tokens = oracle(request.prompt_token_ids, 20, ignore_eos=True)
        ends = [place for place, each in enumerate(tokens) if each in (token, EOS)]
        assert request.output_token_ids == tokens[: ends[0] + 1 if ends else 20]
    early = sum(r.num_output_tokens < 20 for r in requests)
    assert engine.trace.totals.discarded_tokens == early


def test_a_request_that_ends_by_its_length_is_not_computed_too_often():
    engine, runner = overlapping()
    requests = add(engine, ignore_eos=True)
    run(engine)
    expect_oracle(requests)
    assert engine.trace.totals.discarded_tokens == 0
    computed = sum(batch.num_tokens for batch in runner.batches)
    assert computed == sum(request.num_tokens - 1 for request in requests)


@pytest.mark.parametrize("host_tokens", [0, 64])
@pytest.mark.parametrize("victim", ["last", "least_computed"])
@pytest.mark.parametrize("num_blocks", [7, 9, 11])
@pytest.mark.parametrize("order", ["fcfs", "mlfq"])
@pytest.mark.parametrize("prefill_tokens", [None, 1])
def test_no_request_is_preempted_in_flight_and_nothing_is_computed_in_vain(
    host_tokens, victim, num_blocks, order, prefill_tokens
):
    engine, _ = overlapping(
        num_blocks,
        memory__block_size=4,
        memory__watermark=0.0,
        memory__host_bytes=host_tokens * TOKEN_BYTES,
        scheduling__victim=victim,
        scheduling__preemption="swap" if host_tokens else "recompute",
        scheduling__order=order,
        scheduling__mlfq_quantum=2,
        scheduling__max_num_prefill_tokens=prefill_tokens,
    )
    requests = add(engine, max_tokens=14, ignore_eos=True)
    run(engine)
    expect_oracle(requests)
    totals = engine.trace.totals
    assert totals.discarded_tokens == 0
    # Prompts of a token a step are too slow to meet in the largest pool.
    assert totals.preemptions > 0 or (prefill_tokens and num_blocks == 11)
    assert bool(totals.swapped_in_blocks) == bool(host_tokens and totals.preemptions)
    assert engine.memory.pool.num_owned == 0


def swapped_back_after_an_abort(boundary: int, aborted: str) -> tuple[list[Request], EchoRunner]:
    engine, runner = overlapping(
        9,
        memory__block_size=4,
        memory__watermark=0.0,
        memory__host_bytes=64 * TOKEN_BYTES,
        scheduling__preemption="swap",
    )
    requests = add(engine, 3, 16, ignore_eos=True)
    for _ in range(boundary):
        engine.step()
    engine.abort(aborted)
    run(engine)
    assert engine.trace.totals.swapped_in_blocks
    return requests, runner


BOUNDARIES = [(boundary, aborted) for boundary in range(1, 21) for aborted in "01"]


def test_pages_are_saved_and_loaded_beside_a_batch_in_flight():
    num_beside = 0
    for boundary, aborted in BOUNDARIES:
        requests, runner = swapped_back_after_an_abort(boundary, aborted)
        expect_oracle(requests)
        num_beside += runner.num_beside
    assert num_beside > 0


def test_a_page_loaded_too_early_would_be_overwritten_by_the_batch_in_flight(monkeypatch):
    """What the order of transfers is for; and this file would see it."""
    monkeypatch.setattr(TransferOrder, "load_waits", lambda order, blocks, group: False)
    with pytest.raises(AssertionError):
        for boundary, aborted in BOUNDARIES:
            expect_oracle(swapped_back_after_an_abort(boundary, aborted)[0])


@pytest.mark.parametrize("index", ["hash", "radix"])
def test_pages_enter_the_prefix_index_only_with_tokens_that_are_known(index):
    engine, _ = overlapping(memory__block_size=4, memory__prefix_cache=index)
    first = add(engine, 2, ignore_eos=True)
    run(engine)
    again = [
        engine.add(f"again {i}", r.token_ids, SamplingParams(max_tokens=8, temperature=0.0))[0]
        for i, r in enumerate(first)
    ]
    run(engine)
    expect_oracle(again)
    assert all(r.num_cached_tokens >= r.num_prompt_tokens - 5 for r in again)


def test_samples_follow_their_leader():
    engine, _ = overlapping(memory__block_size=4)
    requests = engine.add("many", PROMPTS[1], SamplingParams(max_tokens=9, temperature=0.0, n=4))
    run(engine)
    expect_oracle(requests)
    assert engine.trace.totals.copied_blocks > 0


def test_with_penalties_the_token_in_flight_is_waited_for():
    engine, runner = overlapping()
    requests = add(engine, 2) + engine.add(
        "counted", PROMPTS[3], SamplingParams(max_tokens=4, temperature=0.0, presence_penalty=0.5)
    )
    while not requests[-1].finished:
        engine.step()
    # The one pass without its rows begins when it has ended.
    alone = [b for b in runner.batches if b.sampling.history.shape[1]]
    assert len(alone) == 4 and all(b.pending is None for b in alone)
    run(engine)
    assert any(b.pending is not None for b in runner.batches)
    expect_oracle(requests)


def test_prompt_logprobs_are_complete_and_single():
    engine, _ = overlapping(
        12,
        memory__block_size=4,
        scheduling__max_num_seqs=4,
        scheduling__max_num_batched_tokens=5,
    )
    requests = add(engine, 4, prompt_logprobs=0, ignore_eos=True)
    run(engine)
    expect_oracle(requests)
    for request in requests:
        reported = [entry.token_id for entry in request.prompt_logprobs if entry]
        assert reported == request.prompt_token_ids[1:]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("boundary", [0, 1, 2, 5])
def test_a_failing_pass_ends_its_batch_and_the_engine_goes_on(late, boundary):
    engine, runner = overlapping(scheduling__max_num_seqs=2)
    requests = add(engine, 4)
    for _ in range(boundary):
        engine.step()
    if late:
        runner.fail_late = True
    else:
        runner.fail_next = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    engine.memory.check()
    run(engine)
    expect_oracle(requests)
    assert [r.finish_reason == "error" for r in requests].count(True) == 2
    assert engine.memory.pool.num_owned == 0


def test_logits_that_are_no_numbers_end_one_request_and_its_next_row_is_not_read():
    engine, runner = overlapping()
    requests = add(engine, ignore_eos=True)
    runner.poison_token = oracle(PROMPTS[0], 12, ignore_eos=True)[3]
    run(engine)
    expect_oracle(requests)
    assert requests[0].finish_reason == "error" and requests[0].num_output_tokens == 3
    assert engine.trace.totals.discarded_tokens >= 1


def test_steps_are_recorded_one_after_the_other_and_add_up():
    engine, _ = overlapping(9, memory__block_size=4, memory__watermark=0.0)
    requests = add(engine, max_tokens=14)
    run(engine)
    steps = engine.trace.steps
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(steps))
    assert sum(step.num_sampled_tokens for step in steps) == sum(
        request.num_output_tokens for request in requests
    )
    assert sum(s.num_preempted for s in steps) == sum(r.num_preemptions for r in requests) > 0


def test_close_waits_for_what_is_in_flight():
    engine, runner = overlapping()
    add(engine)
    engine.step()
    engine.close()
    assert len(runner.batches) == runner.num_collected and not engine.has_work


def test_without_a_kv_cache_it_is_refused():
    with pytest.raises(ConfigError, match=r"async_scheduling=True .* memory\.kv_cache=False"):
        overlapping(memory__kv_cache=False)


def test_a_pass_lost_behind_its_submission_gives_no_other_request_its_tokens(monkeypatch):
    engine, runner = overlapping(scheduling__prefill="prefill_first")
    requests = add(engine, 2)
    for _ in range(4):
        engine.step()
    late = engine.add("late", PROMPTS[4], SamplingParams(max_tokens=4, temperature=0.0))[0]
    # A batch of the others is in flight; the next one is the late prompt's alone.
    monkeypatch.setattr(engine.memory, "take_events", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    monkeypatch.undo()
    assert late.finish_reason == "error" and runner.batches[-1].num_tokens == len(PROMPTS[4])
    run(engine)
    assert not any(request.finish_reason == "error" for request in requests)
    expect_oracle(requests)
