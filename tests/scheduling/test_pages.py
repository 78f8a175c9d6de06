"""Pages that a step keeps free, pages it promises, and which request loses its pages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scheduling.driven import PAGE, SWAP, Driven

from minserve.request import Request, SamplingParams, Status
from minserve.scheduling import AdmissionView, QueueEntry, QueuePolicy
from minserve.scheduling.policies.victims import last_in_line, least_computed


def test_the_watermark_is_kept_free_beside_what_runs_and_not_in_an_empty_pool():
    """A pool of ten pages, two of them kept back: five are free when the second needs four."""
    for watermark, admitted in ((0.0, True), (0.1, True), (0.2, False)):
        driven = Driven(10, memory__watermark=watermark, scheduling__max_num_batched_tokens=64)
        first, second = driven.add(18, 2), driven.add(15, 2)
        driven.step()
        assert first.status is Status.RUNNING
        assert (second.status is Status.RUNNING) == admitted
        driven.run()
    alone = Driven(5, memory__watermark=0.4, scheduling__max_num_batched_tokens=64)
    request = alone.add(18, 2)
    alone.step()
    assert request.status is not Status.WAITING


def test_a_better_rank_gets_the_watermark_from_a_worse_one():
    """A place is free and pages are, but not enough beside the watermark."""
    driven = Driven(
        10,
        memory__watermark=0.2,
        scheduling__order="priority",
        scheduling__max_num_batched_tokens=64,
    )
    driven.add(18, 20, priority=5)
    driven.step()
    urgent = driven.add(15, 2, priority=0)
    plan = driven.step()
    assert urgent in plan.requests and plan.preempted == [driven.requests[0]]
    driven.run()


def test_pages_that_a_prompt_will_still_ask_for_are_not_given_to_others():
    """Of ten pages the first holds two and is promised four: the second needs five and waits."""
    driven = Driven(10, memory__watermark=0, scheduling__max_num_batched_tokens=8)
    first, second = driven.add(24, 2), driven.add(18, 2)
    driven.step()
    assert driven.memory.missing_blocks(first, 24) == 4
    view = driven.scheduler._admission_view()
    assert view.promised_blocks == 4 and view.needed_blocks == 5 and not view.has_blocks
    assert driven.memory.fits(second)
    driven.run()
    assert not any(plan.preempted for plan in driven.plans)


def test_promises_are_sums_over_what_runs_and_never_negative():
    driven = Driven(40, memory__watermark=0, scheduling__max_num_batched_tokens=12)
    driven.add(3, 9), driven.add(20, 2), driven.add(7, 2)
    driven.step()
    # Three tokens and nine: a page is full, and three for the rest; the third is not in yet.
    promised = driven.scheduler._admission_view().promised_blocks
    assert promised == sum(
        max(0, driven.memory.missing_blocks(one, one.num_coming_tokens))
        for one in driven.scheduler.running
    )
    assert promised == 2 and len(driven.scheduler.running) == 2


def test_pages_reserved_ahead_by_one_request_are_not_promised_to_another():
    memory = SimpleNamespace(missing_blocks=lambda one, tokens: tokens)
    running = [SimpleNamespace(num_coming_tokens=missing) for missing in (-2, 3, 0)]
    assert AdmissionView(running, [None], 4, memory, 0, QueueEntry).promised_blocks == 3


def candidates(*computed: int) -> list[Request]:
    made = []
    for number, tokens in enumerate(computed):
        made.append(Request(f"{number}", [1], SamplingParams(), 0.0, 0))
        made[-1].num_computed_tokens = tokens
    return made


def test_the_rules_name_the_last_in_line_and_the_one_with_least_to_lose():
    line = candidates(5, 2, 9, 2, 7)
    assert last_in_line(line) is line[-1]
    assert least_computed(line) is line[3]  # of two equals, the later one


@pytest.mark.parametrize(("victim", "expected"), [("last", "r2"), ("least_computed", "r1")])
@pytest.mark.parametrize("values", [{}, SWAP])
def test_the_rule_that_is_configured_chooses_the_victim(victim, expected, values):
    """Three requests fill twelve pages; the first one that grows pushes one of them out."""
    driven = Driven(
        9,
        memory__watermark=0,
        scheduling__victim=victim,
        scheduling__max_num_batched_tokens=64,
        **values,
    )
    driven.add(16, 12), driven.add(3, 9), driven.add(14, 12)
    for _ in range(20):
        plan = driven.step()
        driven.check()
        if plan.preempted:
            break
    assert [one.request_id for one in plan.preempted] == [expected]
    driven.run()


def test_the_first_request_never_loses_its_pages():
    for victim in ("last", "least_computed"):
        driven = Driven(10, memory__watermark=0, scheduling__victim=victim)
        for _ in range(5):
            driven.add(6, 20)
        driven.run()
        preemptions = [one.num_preemptions for one in driven.requests]
        assert preemptions[0] == 0 and sum(preemptions) > 0


def test_a_victim_computes_again_or_comes_back_with_what_it_had():
    for values, swaps in (({}, False), (SWAP, True)):
        driven = Driven(8, memory__watermark=0, memory__prefix_cache="off", **values)
        for _ in range(3):
            driven.add(8, 16)
        while not any(plan.preempted for plan in driven.plans):
            driven.step()
        (victim,) = driven.plans[-1].preempted
        assert victim.status is Status.PREEMPTED and victim in driven.scheduler.waiting
        assert (victim.num_computed_tokens > 0) == swaps
        assert (driven.memory.find(victim).num_tokens > 0) == swaps
        computed = sum(sum(plan.num_tokens) for plan in driven.plans)
        driven.run()
        computed = sum(sum(plan.num_tokens) for plan in driven.plans)
        assert (computed == 3 * (8 + 16 - 1)) == swaps
        assert PAGE == 4


def test_samples_wait_until_the_whole_prompt_is_computed():
    driven = Driven(20, memory__prefix_cache="off", scheduling__max_num_batched_tokens=8)
    leader, *others = driven.add(20, 3, n=3)
    for computed in (8, 16):
        driven.step()
        assert leader.num_computed_tokens == computed
        assert not driven.scheduler.waiting and driven.scheduler.num_waiting == 2
    driven.step(), driven.step()
    assert all(one.status is Status.RUNNING for one in others)
    assert [one.num_cached_tokens for one in others] == [19, 19]


def test_samples_of_a_scored_prompt_do_not_wait_for_the_first():
    driven = Driven()
    samples = driven.add(prompt=5, output=4, n=3, prompt_logprobs=0)
    assert len(driven.scheduler.waiting) == 3
    plan = driven.step()
    assert (plan.requests, plan.num_tokens) == (samples, [5, 5, 5])
    driven.run()
    assert [sample.num_cached_tokens for sample in samples] == [0, 0, 0]


def test_a_static_batch_is_closed_when_pages_end_and_stays_closed():
    driven = Driven(
        10, scheduling__policy="static", memory__watermark=0, scheduling__max_num_batched_tokens=64
    )
    for output in (2, 9, 2, 2):
        driven.add(14, output)
    driven.step()
    assert len(driven.scheduler.running) == 2
    while driven.scheduler.running:
        assert len(driven.scheduler.running) <= 2
        joined = {one.request_id for one in driven.scheduler.running}
        assert joined <= {"r0", "r1"}
        driven.step()
    driven.run()
    assert not any(plan.preempted for plan in driven.plans)


@pytest.mark.parametrize("preemptive", [False, True])
@pytest.mark.parametrize("prefill", ["mixed", "decode_first"])
@pytest.mark.parametrize(("places", "prompt"), [(2, 3), (3, 5)])
def test_the_step_in_which_pages_run_out_admits_none(places, prompt, prefill, preemptive):
    """The place and the pages of the victim would go to the next in line, and back."""

    class LateAfterPreemption(QueuePolicy):
        def rank(self, entry):
            return entry.request.num_preemptions

    order = LateAfterPreemption()
    order.preemptive = preemptive
    driven = Driven(
        5,
        order=order,
        memory__watermark=0,
        scheduling__max_num_seqs=places,
        scheduling__prefill=prefill,
    )
    _, victim = driven.add(8, 9), driven.add(8, 9)
    third = driven.add(prompt, 2)
    driven.step()
    plan = driven.step()
    assert plan.preempted == [victim] and driven.scheduler.waiting[0] is third
    assert third not in plan.requests and third in driven.step().requests
    driven.run()


def test_a_prompt_whose_promised_pages_were_taken_is_preempted_itself():
    """It is the last in line: the one before it has a row in this step and keeps its pages."""
    driven = Driven(
        6,
        memory__watermark=0,
        scheduling__max_num_batched_tokens=8,
        scheduling__prefill="decode_first",
    )
    writer, prompt = driven.add(3, 9), driven.add(20, 2)
    while not any(plan.preempted for plan in driven.plans):
        driven.step()
    assert driven.plans[-1].preempted == [prompt] and driven.plans[-1].requests == [writer]
    assert prompt.num_output_tokens == 0
    driven.run()
