"""Who goes first: ranks, places that change hands, and a bound on being overtaken."""

from __future__ import annotations

import math
import statistics

import pytest
from engine.fakes import make_engine, oracle, run, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.bench.workloads.traffic import fixed_length
from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig, resolve
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import Request, SamplingParams
from minserve.scheduling import (
    LengthOracle,
    MultiLevelFeedback,
    QueueEntry,
    QueuePolicy,
    ShortestFirst,
    WaitingQueue,
)
from minserve.virtual import CostModel

COST = CostModel(DEVICES["A100 80GB SXM"], overhead_s=0.001)


def virtual(order=None, predictor=None, pages=64, **scheduling):
    """A name for the order goes into the configuration, an object stands in for it."""
    values = {f"scheduling.{name}": value for name, value in scheduling.items()}
    if isinstance(order, str):
        values["scheduling.order"], order = order, None
    page_bytes = 16 * tiny_spec().kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {"scheduling.max_num_seqs": 2, "memory.kv_bytes": pages * page_bytes, **values}
    )
    parts = EngineParts(order=order, predictor=predictor)
    return build_virtual_engine(tiny_spec(), config, COST, parts=parts)


def ended(engine, jobs):
    """Names in the order they finish; a job is (prompt, output) or (prompt, output, priority)."""
    for number, (prompt, length, *priority) in enumerate(jobs):
        engine.add(
            f"{number}",
            [3] * prompt,
            fixed_length(length),
            priority=priority[0] if priority else 0,
        )
    run(engine)
    return [int(record.request_id) for record in engine.trace.requests]


def entry(**options):
    """What the queue knows of a request that has just come."""
    return QueueEntry(request(**options))


def request(number=0, prompt=8, max_tokens=10, output=0, computed=None):
    made = Request(
        f"{number}", [1] * prompt, SamplingParams(max_tokens=max_tokens), 0.0, 0,
        max_len=prompt + max_tokens,
    )  # fmt: skip
    made.token_ids += [2] * output
    made.num_ever_computed = prompt + output if computed is None else computed
    return made


def test_first_come_first_served_lets_long_requests_in_front_delay_all_others():
    assert ended(virtual(), [(8, 40), (8, 40), (8, 2), (8, 2)]) == [0, 1, 2, 3]


def test_shortest_first_picks_from_the_queue_and_preempts_no_running_request():
    jobs = [(8, 40), (8, 30), (8, 9), (8, 3), (8, 6)]
    assert ended(virtual(order=ShortestFirst()), jobs) == [3, 4, 2, 1, 0]
    engine = virtual(order=ShortestFirst(), max_num_seqs=1)
    engine.add("long", [3] * 8, fixed_length(30))
    engine.step()
    engine.add("short", [3] * 8, fixed_length(2))
    run(engine)
    assert [record.request_id for record in engine.trace.requests] == ["long", "short"]
    assert engine.trace.totals.preemptions == 0


def test_a_smaller_priority_number_takes_the_place_of_a_larger_one_at_once():
    engine = virtual(order="priority", max_num_seqs=1)
    engine.add("low", [3] * 8, fixed_length(30), priority=5)
    engine.step()
    engine.add("high", [3] * 8, fixed_length(4), priority=1)
    engine.add("equal", [3] * 8, fixed_length(4), priority=5)
    run(engine)
    assert [record.request_id for record in engine.trace.requests] == ["high", "low", "equal"]
    assert engine.trace.totals.preemptions == 1
    assert engine.trace.totals.recomputed_tokens >= 8


def test_no_request_is_preempted_for_one_that_would_still_not_fit():
    engine = virtual(order="priority", pages=6, max_num_seqs=4)
    engine.add("first", [3] * 40, fixed_length(8), priority=0)
    small = engine.add("small", [3] * 33, fixed_length(30), priority=9)[0]
    engine.step()
    engine.add("big", [3] * 60, fixed_length(4), priority=5)
    for _ in range(5):
        engine.step()
    # "big" needs four pages; none is free, and "small" has three.
    assert engine.trace.totals.preemptions == 0 and small.num_output_tokens == 6
    run(engine)
    assert small.num_preemptions == 1


def test_a_short_request_overtakes_long_ones_that_have_used_up_their_level():
    engine = virtual(order="mlfq", mlfq_quantum=4)
    assert ended(engine, [(8, 60), (8, 60), (8, 3), (8, 3)])[:2] == [2, 3]
    assert engine.trace.totals.preemptions == 2
    first = virtual(order="fcfs")
    assert ended(first, [(8, 60), (8, 60), (8, 3), (8, 3)])[:2] == [0, 1]


def test_levels_double_and_long_prompts_skip_those_whose_quantum_they_would_use_up():
    order = MultiLevelFeedback(quantum=4, prompt_tokens_per_step=100, levels=5)
    levels = [order.rank(entry(prompt=10, output=n)) for n in range(0, 70)]
    # 4 steps in level 0, 8 in level 1, 16 in level 2, 32 in level 3; the last is never left.
    assert [levels.index(level) for level in (1, 2, 3, 4)] == [4, 12, 28, 60]
    assert max(levels) == 4
    assert order.rank(entry(prompt=350)) == 0
    assert order.rank(entry(prompt=450, computed=0)) == 1
    assert order.rank(entry(prompt=1700, computed=0)) == 3
    assert order.rank(entry(prompt=90_000, computed=0)) == 4
    with pytest.raises(ValueError, match="at least 1 each"):
        MultiLevelFeedback(quantum=0)


def test_a_request_never_moves_up_a_level_by_being_served():
    order = MultiLevelFeedback(quantum=3, prompt_tokens_per_step=16)
    for prompt in (1, 40, 100):
        read = [order.rank(entry(prompt=prompt, computed=n)) for n in range(prompt + 1)]
        written = [order.rank(entry(prompt=prompt, output=n)) for n in range(200)]
        assert read + written == sorted(read + written)


def test_the_oracle_knows_fixed_lengths_and_errs_by_the_given_factor():
    one = request(max_tokens=50)
    assert LengthOracle().predict(one) == 50
    guesses = [LengthOracle(0.7, seed=1).predict(request(n, max_tokens=50)) for n in range(4000)]
    logs = [math.log(guess / 50) for guess in guesses]
    assert statistics.mean(logs) == pytest.approx(0, abs=0.04)
    assert statistics.pstdev(logs) == pytest.approx(0.7, abs=0.03)
    assert LengthOracle(0.7, seed=1).predict(one) == LengthOracle(0.7, seed=1).predict(one)
    assert LengthOracle(0.7, seed=2).predict(one) != LengthOracle(0.7, seed=1).predict(one)


def test_the_oracle_errs_differently_for_each_sample_of_a_prompt():
    samples = [request(0, max_tokens=50) for _ in range(3)]
    for index, sample in enumerate(samples):
        sample.sample_index = index
    oracle = LengthOracle(0.7, seed=1)
    guesses = [oracle.predict(sample) for sample in samples]
    assert len(set(guesses)) == 3
    assert [oracle.predict(sample) for sample in samples] == guesses


def test_a_given_predictor_is_called_once_and_decides():
    class Backwards:
        asked = 0

        def predict(self, request):
            self.asked += 1
            return 100.0 - request.max_len

    backwards = Backwards()
    engine = virtual(order="sjf", predictor=backwards, max_num_seqs=1)
    assert ended(engine, [(8, 5), (8, 10), (8, 20)]) == [2, 1, 0]
    assert backwards.asked == 3


def test_a_static_batch_with_buckets_holds_one_bucket():
    jobs = [(8, 30), (8, 3), (8, 31), (8, 4), (8, 33), (8, 2)]
    settings = {"policy": "static", "order": "sjf", "max_num_seqs": 3}
    engine = virtual(**settings, length_bucket=20)
    assert sorted(ended(engine, jobs)[:3]) == [1, 3, 5]
    bucketed, plain = engine.trace.totals, virtual(policy="static", max_num_seqs=3)
    ended(plain, jobs)
    # Two batches either way; with buckets the short one ends with its longest request.
    assert bucketed.steps == 4 + 33
    assert plain.trace.totals.steps == 31 + 33
    apart = virtual(**settings, length_bucket=1)
    ended(apart, jobs)
    assert apart.trace.totals.peak_running == 1


def test_a_callers_own_order_needs_only_one_method():
    class LastComeFirstServed(QueuePolicy):
        def rank(self, entry):
            return -entry.arrival_number

    engine = virtual(order=LastComeFirstServed(), max_num_seqs=1)
    assert ended(engine, [(8, 4)] * 4) == [3, 2, 1, 0]


@pytest.mark.parametrize("order", ["sjf", "mlfq", "priority"])
def test_after_the_limit_no_request_is_overtaken(order):
    """A stream of favourites that never ends: without the limit the long one starves in it."""

    def serve_the_unlucky(limit_s):
        engine = virtual(order=order, max_num_seqs=1, starvation_limit_s=limit_s, mlfq_quantum=4)
        engine.add("early", [3] * 8, fixed_length(20))
        engine.step()
        unlucky = engine.add("unlucky", [3] * 100, fixed_length(27), priority=7)[0]
        entry = engine._scheduler.waiting.entry(unlucky)
        for number in range(400):
            engine.add(f"{number}", [3] * 8, fixed_length(3))
            for _ in range(3):
                if not unlucky.finished:
                    engine.step()
        return unlucky.finished, entry.waited_s

    assert not serve_the_unlucky(1000.0)[0]
    finished, waited_s = serve_the_unlucky(0.1)
    # All its waits together: at most the limit, and then what runs already, "early" the longest.
    assert finished and 0.1 <= waited_s < 0.125


def test_first_come_first_served_needs_no_limit_and_others_get_one_by_default():
    spec = tiny_spec()
    assert resolve(EngineConfig(), spec, "cpu").config.scheduling.starvation_limit_s is None
    config = resolve(EngineConfig().with_values({"scheduling.order": "sjf"}), spec, "cpu")
    assert config.config.scheduling.starvation_limit_s == 30.0
    assert "lets requests overtake" in "".join(config.notes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"policy": "static", "order": "mlfq"}, "a batch runs to its end"),
        ({"order": "mlfq", "length_error": 0.5}, "is about predicted lengths"),
        ({"length_bucket": 16}, "use order='sjf'"),
        ({"max_num_prefill_tokens": 64, "enable_chunked_prefill": False}, "splits prompts"),
        ({"max_num_prefill_tokens": 1024}, "above scheduling.max_num_batched_tokens=512"),
        ({"order": "shortest"}, "expected one of fcfs, sjf, lpm, priority, mlfq"),
    ],
)
def test_what_cannot_go_together_is_refused_in_a_sentence(values, words):
    with pytest.raises(ConfigError, match=words):
        values = {f"scheduling.{name}": value for name, value in values.items()}
        resolve(EngineConfig().with_values(values), tiny_spec(), "cpu")


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "pop", "remove", "promote"]), st.integers(0, 5)),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_queue_is_what_sorting_it_every_time_would_give(operations):
    class ByPrompt(QueuePolicy):
        def rank(self, entry):
            return entry.request.num_prompt_tokens

    def key(known):
        rank = 0 if known.urgent else known.request.num_prompt_tokens
        return (not known.urgent, rank, known.arrival_number)

    queue, inside, number = WaitingQueue(ByPrompt(), limit_s=7.0), [], 0
    outside: list[Request] = []
    for now_s, (name, value) in enumerate(operations):
        if name == "push":
            # Sometimes a request that has waited before returns, as after a preemption.
            if outside and value > 3:
                one = outside.pop()
            else:
                one, number = request(number, prompt=value + 1), number + 1
            queue.push(one, float(now_s))
            inside.append(one)
        elif name == "promote":
            queue.promote(float(now_s))
            for one in inside:
                known = queue.entry(one)
                waited = known.waited_s + now_s - known.waiting_since_s
                assert known.urgent == (waited >= 7.0) or known.urgent
        elif inside and name == "pop":
            outside.append(queue.pop(float(now_s)))
            inside.remove(outside[-1])
        elif inside:
            queue.remove(inside.pop(value % len(inside)))
        inside.sort(key=lambda one: key(queue.entry(one)))
        assert list(queue) == inside == [queue[i] for i in range(len(queue))]
        assert all(one in queue for one in inside)


def test_orders_change_when_tokens_come_and_never_which():
    class Fewest(QueuePolicy):
        preemptive = True

        def rank(self, entry):
            return entry.request.num_output_tokens

    config = EngineConfig().with_values({"scheduling.max_num_seqs": 2})
    engine, _, _ = make_engine(config, order=Fewest())
    requests = [engine.add(f"{n}", [n + 1] * 9, fixed_length(6))[0] for n in range(4)]
    run(engine)
    assert engine.trace.totals.preemptions > 0
    for number, one in enumerate(requests):
        assert one.output_token_ids == oracle([number + 1] * 9, 6, ignore_eos=True)
