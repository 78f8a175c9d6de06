"""Every kind of workload is drawn, again and again alike, and no larger than it may be."""

from __future__ import annotations

import itertools
import random

import pytest
import sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.listed import rows_of, traffic_of
from minserve.bench.compare.setup import Setup
from minserve.bench.compare.workload import KINDS, Sources, Workload
from minserve.bench.workloads.traffic import at_once, fixed_length

OWN = {
    "prompts": {"prompts": ("def f(x):", "import os")},
    "listed": {"rows": ((0.0, 4, 4, 0, -1, 0), (0.5, 6, 4, 0, 0, 3))},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_and_equal_values_draw_equal_requests(kind):
    setup = Setup(workload=Workload(kind, **OWN.get(kind, {})), clock="virtual")
    traffic = setup.traffic()
    assert traffic.requests and traffic == setup.traffic()
    spec = setup.spec()
    for each in traffic.requests:
        assert each.prompt_token_ids and each.params.ignore_eos
        assert each.params.max_tokens == each.params.min_tokens >= 1
        assert len(each.prompt_token_ids) + each.params.max_tokens <= spec.max_position
        assert 0 <= min(each.prompt_token_ids) <= max(each.prompt_token_ids) < spec.vocab_size
    rates = [p for p in KINDS[kind].parameters if p.name == "rate"]
    if rates:
        still = Workload(kind, {"rate": 0.0}, **OWN.get(kind, {})).traffic(
            Sources(4000, lambda text: [2, 3, 5])
        )
        assert still.rate_per_s is None


def test_requests_that_do_not_fit_are_left_out_said_and_leave_their_gap():
    workload = Workload("independent", {"count": 40, "lengths": "exponential", "rate": 5.0})
    whole = workload.traffic(Sources())
    cut = workload.traffic(Sources(most=80))
    assert 0 < len(cut.requests) < len(whole.requests)
    left_out = len(whole.requests) - len(cut.requests)
    assert f"({left_out} of 40 longer than 80 tokens, left out)" in cut.name
    times = itertools.accumulate(each.gap for each in whole.requests)
    by_prompt = dict(zip([r.prompt_token_ids for r in whole.requests], times, strict=True))
    times = itertools.accumulate(each.gap for each in cut.requests)
    for each, time in zip(cut.requests, times, strict=True):
        assert time == pytest.approx(by_prompt[each.prompt_token_ids])
    with pytest.raises(SetupError, match="none of the 40 requests fits into the 1 tokens"):
        workload.traffic(Sources(most=1))


def test_more_tokens_than_a_machine_should_hold_are_refused():
    workload = Workload("independent", {"count": 5000, "prompt": 2000, "lengths": "fixed"})
    with pytest.raises(SetupError, match="10,000,000 prompt tokens, and 4,000,000 are allowed"):
        workload.traffic(Sources())
    with pytest.raises(SetupError, match="choose fewer"):
        Workload("agent-tree", {"branches": 16, "depth": 9}).traffic(Sources())


def shares(prompts):
    """Tokens that each two prompts share at their beginning."""
    return [
        len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))
        for a, b in itertools.combinations(prompts, 2)
    ]


@settings(max_examples=sampled.examples(300, 50), deadline=None)
@given(st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=8), min_size=1, max_size=12))
def test_a_list_keeps_the_lengths_and_every_shared_prefix(prompts):
    traffic = at_once(prompts, [fixed_length(n + 1) for n in range(len(prompts))])
    again = traffic_of(rows_of(traffic), None, 4000, "listed", seed=3)
    drawn = [each.prompt_token_ids for each in again.requests]
    assert shares(drawn) == shares(prompts)
    assert [len(each) for each in drawn] == [len(each) for each in prompts]
    assert [each.params for each in again.requests] == [each.params for each in traffic.requests]


def test_a_list_of_drawn_conversations_shares_what_they_share():
    setup = Setup(workload=Workload("conversations", {"count": 30}), clock="virtual")
    traffic = setup.traffic()
    again = traffic_of(rows_of(traffic), traffic.rate_per_s, 4000, "listed")
    assert shares([r.prompt_token_ids for r in again.requests]) == shares(
        [r.prompt_token_ids for r in traffic.requests]
    )
    assert [r.gap for r in again.requests] == pytest.approx(
        [r.gap for r in traffic.requests], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["missing.jsonl", ".", "/dev/zero"])
def test_a_trace_that_is_no_file_is_refused(kind):
    with pytest.raises(SetupError, match=r"no trace|no file"):
        Workload("trace", {"file": kind}).traffic(Sources())


def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path):
    for number, content in enumerate(
        (b"\xff\xfe\x00", b"", b"hello", random.Random(0).randbytes(99))
    ):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            Workload("trace", {"file": str(path)}).traffic(Sources())


def test_a_share_of_the_requests_is_urgent_and_nothing_else_changes():
    values = {"count": 400, "rate": 5.0}
    plain = Workload("independent", values).traffic(Sources())
    mixed = Workload("independent", values | {"urgent": 0.25}).traffic(Sources())
    urgent = [each.priority == 0 for each in mixed.requests]
    assert {each.priority for each in mixed.requests} == {0, 1}
    assert 0.15 < sum(urgent) / 400 < 0.35
    assert [(r.gap, r.prompt_token_ids, r.params) for r in mixed.requests] == [
        (r.gap, r.prompt_token_ids, r.params) for r in plain.requests
    ]
    assert not any(each.priority for each in plain.requests)


def test_more_pages_on_the_host_than_a_list_should_hold_are_refused():
    base = {"memory.host_bytes": 1 << 46, "memory.prefix_cache": "radix"}
    setup = Setup(base=base, clock="virtual")
    with pytest.raises(SetupError, match=r"host_bytes=70368744177664 is [\d,]+ pages"):
        setup.resolved("base")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            {"memory.kv_bytes": 10**18, "memory.prefix_cache": "radix"},
            r"memory.kv_bytes=1000000000000000000 is [\d,]+ pages, and 16,777,216 are allowed",
        ),
        (
            {"memory.kv_bytes": 1 << 30, "scheduling.max_num_seqs": 1_000_000},
            r"max_num_seqs=1000000 requests of up to [\d,]+ pages have block tables of",
        ),
    ],
)
def test_more_than_a_list_should_hold_is_refused(base, said):
    setup = Setup(model="llama-3.1-8b", base=base, clock="virtual")
    with pytest.raises(SetupError, match=said):
        setup.resolved("base")


def test_a_pool_that_no_request_can_fill_is_no_longer_a_list():
    base = {"memory.kv_bytes": 10**18}
    Setup(model="llama-3.1-8b", base=base, clock="virtual").check()


def test_a_pool_larger_than_this_machine_is_refused_where_it_would_be_allocated():
    base = {"memory.kv_bytes": 1 << 44, "memory.prefix_cache": "radix", "memory.block_size": 1024}
    with pytest.raises(SetupError, match=r"make pools of [\d,]+ bytes, and this machine has"):
        Setup(base=base).resolved("base")
    # Without a prefix cache no more is allocated than all requests can use.
    Setup(base={"memory.kv_bytes": 1 << 48, "scheduling.max_num_seqs": 4}).check()
