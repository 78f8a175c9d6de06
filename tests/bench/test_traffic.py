"""Traffic is what it says: gaps, lengths and shared prefixes have the stated statistics."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from minserve.bench.metrics import Run, Slo, serve_result
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.arrivals import gamma_arrivals, on_off_arrivals, poisson_arrivals
from minserve.bench.workloads.traffic import traffic
from minserve.request import RequestMetrics


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1.0, 4.0])
def test_burstiness_is_the_shape_of_the_gamma_distribution_as_in_vllm(burstiness):
    gaps = gamma_arrivals(burstiness)(30_001, random.Random(1))[1:]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1.0, rel=0.04)
    assert statistics.pstdev(gaps) / mean == pytest.approx(burstiness**-0.5, rel=0.04)


def test_poisson_is_burstiness_one():
    draws = [make(50, random.Random(3)) for make in (poisson_arrivals, gamma_arrivals(1.0))]
    assert draws[0] == draws[1] and draws[0][0] == 0


def test_on_off_keeps_the_mean_rate_and_nobody_comes_while_it_is_off():
    gaps = on_off_arrivals(20.0, 60.0)(20_001, random.Random(2))
    times = [sum(gaps[:1])]
    for gap in gaps[1:]:
        times.append(times[-1] + gap)
    assert statistics.fmean(gaps[1:]) == pytest.approx(1.0, rel=0.05)
    # On for 20 mean gaps out of 80, and four times as dense meanwhile.
    assert all(time % 80.0 <= 20.0 + 1e-6 for time in times)
    inside = [gap for gap in gaps[1:] if gap < 60]
    assert statistics.fmean(inside) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("make", "mean", "tolerance"),
    [
        (length_draws.fixed(90), 90, 0),
        (length_draws.uniform(10, 30), 20, 0.02),
        (length_draws.exponential(256), 256, 0.02),
        (length_draws.lognormal(200, 1.0), 200, 0.03),
        (length_draws.pareto(100, 2.5), 100, 0.03),
    ],
)
def test_lengths_have_their_mean(make, mean, tolerance):
    draw = random.Random(5)
    lengths = [make(draw) for _ in range(40_000)]
    assert statistics.fmean(lengths) == pytest.approx(mean, rel=tolerance or 1e-12)
    assert min(lengths) >= 1


def test_a_pareto_tail_carries_much_of_the_work_and_a_limit_cuts_it():
    draw = random.Random(5)
    lengths = sorted(length_draws.pareto(64, 1.2)(draw) for _ in range(20_000))
    assert sum(lengths[-1000:]) > 0.4 * sum(lengths)
    assert max(length_draws.pareto(64, 1.2, at_most=500)(draw) for _ in range(20_000)) == 500


def shared(a, b):
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def test_prefixes_are_shared_where_the_shape_says_so_and_nowhere_else():
    ten, draw = length_draws.fixed(10), random.Random(1)
    alone = conversations.independent(ten, ten)(20, draw)
    assert (
        max(
            shared(a.prompt_token_ids, b.prompt_token_ids)
            for a in alone
            for b in alone
            if a is not b
        )
        < 5
    )
    common = conversations.shared_prefix(50, ten, ten)(20, draw)
    assert all(shared(common[0].prompt_token_ids, c.prompt_token_ids) >= 50 for c in common)
    assert {len(c.prompt_token_ids) for c in common} == {60}
    examples = conversations.few_shot(6, ten, 2, ten, ten)(40, draw)
    lengths = [len(e.prompt_token_ids) for e in examples]
    assert set(lengths) == {30, 40, 50, 60, 70}
    longest = max(examples, key=lambda e: len(e.prompt_token_ids)).prompt_token_ids
    for one in examples:
        assert shared(one.prompt_token_ids, longest) >= len(one.prompt_token_ids) - 10


def test_a_turn_continues_its_conversation_and_a_node_its_path():
    ten, draw = length_draws.fixed(10), random.Random(1)
    talk = conversations.multi_turn(3, ten, length_draws.fixed(7), at_once=1)(6, draw)
    assert [len(job.prompt_token_ids) for job in talk] == [10, 27, 44, 10, 27, 44]
    for before, after in itertools.pairwise(talk[:3]):
        assert after.prompt_token_ids[: len(before.prompt_token_ids)] == before.prompt_token_ids
    tree = conversations.agent_tree(2, 3, ten, ten)(7, draw)
    assert [len(job.prompt_token_ids) for job in tree] == [10, 20, 20, 30, 30, 30, 30]
    assert shared(tree[3].prompt_token_ids, tree[4].prompt_token_ids) == 20
    assert shared(tree[3].prompt_token_ids, tree[5].prompt_token_ids) == 10


def test_the_same_seed_gives_the_same_prompts_whatever_the_arrivals():
    jobs = conversations.independent(length_draws.exponential(40), length_draws.exponential(9))
    calm = traffic(jobs, 50, 2.0, seed=4)
    bursts = traffic(jobs, 50, 9.0, gamma_arrivals(0.3), seed=4)
    assert [r.prompt_token_ids for r in calm.requests] == [
        r.prompt_token_ids for r in bursts.requests
    ]
    assert [r.gap for r in calm.requests] != [r.gap for r in bursts.requests]
    assert calm != traffic(jobs, 50, 2.0, seed=5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gamma_arrivals(0), "expected a positive number"),
        (lambda: on_off_arrivals(0, 1), "a time that is on"),
        (lambda: length_draws.pareto(10, 1.0), "no mean"),
        (lambda: length_draws.exponential(0), "at least 1 token"),
        (lambda: length_draws.uniform(5, 4), "low <= high"),
        (
            lambda: conversations.agent_tree(0, 1, length_draws.fixed(1), length_draws.fixed(1)),
            "at least 1",
        ),
        (
            lambda: traffic(
                conversations.independent(length_draws.fixed(1), length_draws.fixed(1)), 0, 1.0
            ),
            "at least 1 request",
        ),
        (lambda: Slo.parse(["ttft=200"]), "such as ttft:200"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def metrics(ttft, tpot, tokens=11):
    return RequestMetrics(0.0, 0.0, ttft, ttft + tpot * (tokens - 1), 5, tokens, 0)


def test_goodput_counts_requests_that_meet_every_limit():
    run = Run(
        2.0, ((1,) * 11,) * 3, 15, (metrics(0.1, 0.02), metrics(0.3, 0.02), metrics(0.1, 0.06))
    )
    assert serve_result(run)["request_goodput"] is None
    assert serve_result(run, Slo.parse(["ttft:200"]))["request_goodput"] == 1.0
    assert serve_result(run, Slo.parse(["ttft:200", "tpot:50"]))["request_goodput"] == 0.5
    assert serve_result(run, Slo.parse(["e2el:1000"]))["request_goodput"] == 1.5
    assert Slo(tpot_s=0.001).met_by(metrics(9.0, 0.0, tokens=1))
    assert not Slo(ttft_s=9.0).met_by(RequestMetrics(0.0, None, None, 1.0, 5, 0, 0))
