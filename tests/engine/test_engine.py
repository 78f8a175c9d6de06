"""The loop, over a runner that reads its tokens back through the block tables."""

from __future__ import annotations

import pytest
from engine.fakes import EOS, VOCAB, make_engine, next_token, oracle, run

from minserve.config import EngineConfig
from minserve.request import InvalidRequestError, Request, SamplingParams


def greedy(max_tokens: int = 20, **values: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **values)  # type: ignore[arg-type]


def config(**values: object) -> EngineConfig:
    return EngineConfig().with_values({path.replace("__", "."): v for path, v in values.items()})


def prompts(count: int, length: int = 9) -> list[list[int]]:
    return [
        [(7 * i + 3 * j) % (VOCAB - 1) + 1 for j in range(length + i % 5)] for i in range(count)
    ]


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("budget", [8, 13, 512])
@pytest.mark.parametrize("victim", ["last", "least_computed"])
def test_output_is_the_same_for_any_pages_chunks_and_victims(block_size, budget, victim):
    engine, _, _ = make_engine(
        config(
            memory__block_size=block_size,
            scheduling__max_num_batched_tokens=budget,
            scheduling__max_num_seqs=8,
            scheduling__victim=victim,
        ),
        num_blocks=-(-64 // block_size),
    )
    requests = [engine.add(str(i), p, greedy(20))[0] for i, p in enumerate(prompts(12))]
    run(engine)
    for request in requests:
        assert request.output_token_ids == oracle(request.prompt_token_ids, 20)
        assert request.finish_reason in ("stop", "length")
    assert engine.memory.pool.num_owned == 0
    assert engine.trace.totals.preemptions == sum(r.num_preemptions for r in requests)
    assert engine.trace.totals.preemptions > 0


def test_a_request_that_fills_the_pool_exactly_is_served_and_one_more_token_refused():
    engine, _, _ = make_engine(config(memory__block_size=4), num_blocks=5)
    request = engine.add("fits", [1] * 10, greedy(11, ignore_eos=True))[0]
    run(engine)
    assert request.num_tokens == 21  # 20 tokens in the pool and the last, never computed
    with pytest.raises(InvalidRequestError, match="can never fit into the KV pool, which holds 21"):
        engine.add("too much", [1] * 10, greedy(12, ignore_eos=True))


def test_a_pool_smaller_than_max_model_len_ends_a_request_with_length():
    engine, _, _ = make_engine(config(memory__block_size=4), num_blocks=3)
    prompt = next(p for p in prompts(5, 5) if EOS not in oracle(p, 40))
    request = engine.add("open end", prompt, SamplingParams(max_tokens=None, temperature=0))[0]
    run(engine)
    assert (request.finish_reason, request.num_tokens) == ("length", 13)


def test_chunked_prefill_off_computes_each_prompt_in_one_step():
    engine, runner, _ = make_engine(
        config(
            scheduling__enable_chunked_prefill=False,
            scheduling__max_num_batched_tokens=128,
            scheduling__max_num_seqs=8,
        )
    )
    lengths = [50, 60, 70]
    for i, n in enumerate(lengths):
        engine.add(str(i), [1 + i] * n, greedy(3, ignore_eos=True))
    run(engine)
    chunks = [n for batch in runner.batches for n in batch.query_lens if n > 1]
    assert sorted(chunks) == lengths


def test_without_a_kv_cache_every_step_computes_every_token_and_keeps_none():
    engine, runner, _ = make_engine(config(memory__kv_cache=False))
    request = engine.add("a", [5] * 10, greedy(6, ignore_eos=True))[0]
    run(engine)
    assert request.output_token_ids == oracle([5] * 10, 6, ignore_eos=True)
    assert [batch.num_tokens for batch in runner.batches] == [10, 11, 12, 13, 14, 15]
    steps = engine.trace.steps
    assert all(step.kv_tokens == 0 and step.kv_bytes_used == 0 for step in steps)
    assert sum(step.num_recomputed_tokens for step in steps) == 10 + 11 + 12 + 13 + 14


def test_prefill_and_decode_share_a_step():
    engine, _, _ = make_engine(
        config(scheduling__max_num_batched_tokens=16, scheduling__max_num_seqs=4)
    )
    engine.add("short", [1, 2, 3], greedy(10, ignore_eos=True))
    engine.step()
    engine.add("long", [4] * 40, greedy(2, ignore_eos=True))
    run(engine)
    mixed = [s for s in engine.trace.steps if s.num_prefill_tokens and s.num_decode_tokens]
    assert [(s.num_prefill_tokens, s.num_decode_tokens) for s in mixed] == [
        (15, 1),
        (15, 1),
        (10, 1),
    ]


def test_abort_at_any_moment_frees_pages_and_leaves_others_alone():
    engine, _, _ = make_engine(config(scheduling__max_num_seqs=2))
    first, second, third = (engine.add(str(i), p, greedy(20))[0] for i, p in enumerate(prompts(3)))
    engine.step()
    assert engine.abort("0") and engine.abort("2")  # one runs, one waits
    assert not engine.abort("0") and not engine.abort("unknown")
    run(engine)
    assert first.finish_reason == third.finish_reason == "abort"
    assert second.output_token_ids == oracle(second.prompt_token_ids, 20)
    assert engine.trace.totals.finished_requests == 3
    assert engine.memory.pool.num_owned == 0


def test_a_failing_runner_ends_its_batch_and_the_engine_goes_on():
    engine, runner, _ = make_engine(config(scheduling__max_num_seqs=2))
    requests = [engine.add(str(i), p, greedy(5))[0] for i, p in enumerate(prompts(3))]
    runner.fail_next = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    assert [r.finish_reason for r in requests] == ["error", "error", None]
    assert requests[0].error == "RuntimeError: the device is gone"
    run(engine)
    assert requests[2].output_token_ids == oracle(requests[2].prompt_token_ids, 5)
    assert engine.memory.pool.num_owned == 0


def test_logits_that_are_no_numbers_end_one_request_and_no_other():
    engine, runner, _ = make_engine()
    bad, good = prompts(2)
    runner.poison_token = next_token(bad)
    first = engine.add("bad", bad, greedy(8))[0]
    second = engine.add("good", good, greedy(8))[0]
    run(engine)
    assert first.finish_reason == "error"
    assert "not numbers" in (first.error or "")
    assert runner.poison_token in oracle(good, 8) or second.finish_reason in ("stop", "length")


def test_prompt_logprobs_are_complete_and_single_after_preemption():
    engine, _, _ = make_engine(
        config(
            memory__block_size=2,
            scheduling__max_num_batched_tokens=8,
            scheduling__max_num_seqs=4,
        ),
        num_blocks=20,
    )
    params = SamplingParams(max_tokens=12, temperature=0, prompt_logprobs=0, ignore_eos=True)
    requests = [engine.add(str(i), p, params)[0] for i, p in enumerate(prompts(6))]
    run(engine)
    assert sum(r.num_preemptions for r in requests) > 0
    for request in requests:
        assert request.prompt_logprobs[0] is None
        scored = [entry.token_id for entry in request.prompt_logprobs[1:] if entry]
        assert scored == request.prompt_token_ids[1:]


def test_n_samples_of_one_prompt_are_requests_of_their_own():
    engine, _, _ = make_engine()
    samples = engine.add("n", [1, 2, 3], SamplingParams(max_tokens=4, n=3, temperature=0))
    assert [r.sample_index for r in samples] == [0, 1, 2]
    assert len({r.seed for r in samples}) == 1
    run(engine)
    assert all(r.output_token_ids == oracle([1, 2, 3], 4) for r in samples)


def test_min_tokens_lets_an_end_of_sequence_pass():
    pairs = ([a, b] for a in range(1, VOCAB) for b in range(1, VOCAB))
    start = next(p for p in pairs if 3 < len(oracle(p, 10)) < 8)
    short = oracle(start, 10)
    engine, _, _ = make_engine()
    free = engine.add("free", start, greedy(10))[0]
    held = engine.add("held", start, greedy(10, min_tokens=len(short) + 1))[0]
    run(engine)
    assert (free.output_token_ids, free.finish_reason) == (short, "stop")
    assert held.num_output_tokens > len(short)


def test_stop_token_ids_end_the_request_and_are_named():
    text = oracle([9, 9], 12, ignore_eos=True)
    engine, _, _ = make_engine()
    request = engine.add("s", [9, 9], greedy(12, ignore_eos=True, stop_token_ids=[text[4]]))[0]
    run(engine)
    assert request.output_token_ids == text[: text.index(text[4]) + 1]
    assert (request.finish_reason, request.stop_reason) == ("stop", text[4])


@pytest.mark.parametrize(
    ("prompt", "params", "sentence"),
    [
        ([], {}, "the prompt is empty"),
        ([VOCAB], {}, f"token id {VOCAB} in the prompt is outside the vocabulary of {VOCAB}"),
        ([-1], {}, "token id -1"),
        ([1] * 128, {}, "leaves no room for output within max_model_len=128"),
        ([1], {"stop": "x"}, "stop strings need a tokenizer"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias names token 97"),
        ([1], {"logprobs": VOCAB + 1}, "logprobs asked for"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_in_a_sentence(prompt, params, sentence):
    engine, _, _ = make_engine()
    with pytest.raises(InvalidRequestError, match=sentence):
        engine.add("bad", prompt, SamplingParams(**params))
    assert not engine.has_work


def test_a_name_in_use_is_refused():
    engine, _, _ = make_engine()
    engine.add("a", [1], greedy())
    with pytest.raises(InvalidRequestError, match="still running"):
        engine.add("a", [1], greedy())


def test_metrics_follow_the_clock():
    engine, _, clock = make_engine()
    clock.advance(1.0)
    request = engine.add("a", [3] * 10, greedy(3, ignore_eos=True), arrival_s=0.5)[0]
    run(engine)
    metrics = request.metrics()
    assert metrics.queue_s == pytest.approx(0.5)
    assert metrics.ttft_s == pytest.approx(0.5 + 0.010)
    assert metrics.tpot_s == pytest.approx(0.001)
    assert metrics.e2e_s == pytest.approx(0.5 + 0.012)


def test_updates_name_every_request_that_changed():
    engine, _, _ = make_engine()
    a = engine.add("a", [3, 4], greedy(5, ignore_eos=True))[0]
    b = engine.add("b", [5, 6], greedy(5, ignore_eos=True))[0]
    engine.step()
    assert engine.take_updates() == [a, b]
    assert engine.take_updates() == []
    engine.abort("b")
    assert engine.take_updates() == [b]


def test_detail_names_pages_and_tokens():
    engine, _, _ = make_engine(config(trace__per_request=True, trace__pages=True))
    request: Request = engine.add("a", [3] * 20, greedy(2, ignore_eos=True))[0]
    run(engine)
    first, second = (step.requests[0] for step in engine.trace.steps)
    assert (first.start, first.num_tokens, len(first.blocks)) == (0, 20, 2)
    assert (second.start, second.num_tokens) == (20, 1)
    assert [*first.new_token_ids, *second.new_token_ids] == request.output_token_ids


def test_a_static_batch_admits_no_request_until_its_last_one_has_ended():
    engine, _, _ = make_engine(
        config(
            scheduling__policy="static",
            scheduling__max_num_seqs=3,
            scheduling__max_num_batched_tokens=16,
        )
    )
    lengths = [2, 9, 4, 3, 3]
    for i, n in enumerate(lengths):
        engine.add(str(i), [1 + i] * 10, greedy(n, ignore_eos=True))
    finished: list[tuple[str, int]] = []
    while engine.has_work:
        step = engine.step()
        engine.memory.check()
        finished += [(r.request_id, step.index) for r in engine.take_updates() if r.finished]
    when = dict(finished)
    assert [name for name, _ in finished[:3]] == ["0", "2", "1"]
    first_of_next = min(
        request.first_scheduled_s for request in (engine.trace.requests[-1].metrics,)
    )
    assert first_of_next >= max(r.metrics.finished_s for r in engine.trace.requests[:3])
    assert when["3"] > when["1"]


def test_a_static_batch_admits_all_its_prompts_even_over_several_steps():
    engine, _, _ = make_engine(
        config(
            scheduling__policy="static",
            scheduling__max_num_seqs=4,
            scheduling__max_num_batched_tokens=16,
        )
    )
    for i in range(4):
        engine.add(str(i), [1 + i] * 14, greedy(30, ignore_eos=True))
    for _ in range(5):
        engine.step()
    assert engine.trace.steps[-1].num_running == 4
