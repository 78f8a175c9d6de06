"""Priority inversion: what a good rank waits for does not grow with the requests of worse rank."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling.driven import SWAP, Driven

from minserve.request import Request
from minserve.scheduling import ContinuousBatching, QueuePolicy
from minserve.scheduling.policies.turns import Budget

TURNS = ["mixed", "decode_first", "prefill_first"]


def steps_to_first_token(driven: Driven, request, most: int = 300) -> int:
    for number in range(1, most + 1):
        driven.step()
        driven.check()
        if request.num_output_tokens:
            return number
    raise AssertionError(f"no token in {most} steps")


def long_and_urgent(long: int, prompt: int = 3, pages: int = 200, **values):
    """A long prompt is being read; then a short one of better rank arrives, with a free place."""
    settings = {
        "scheduling__order": "priority",
        "scheduling__max_num_batched_tokens": 8,
        "scheduling__max_model_len": None,
        **values,
    }
    driven = Driven(pages, max_position=700, **settings)
    driven.add(long, 4, priority=5)
    driven.step()
    return driven, driven.add(prompt, 3, priority=0)


@pytest.mark.parametrize("prefill", TURNS)
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("order", ["priority", "mlfq"])
def test_an_urgent_request_does_not_wait_for_the_long_prompt_before_it(order, depth, prefill):
    for long in (100, 400, 600):
        driven, urgent = long_and_urgent(
            long,
            scheduling__order=order,
            scheduling__mlfq_quantum=1,
            scheduling__prefill=prefill,
            depth=depth,
        )
        assert steps_to_first_token(driven, urgent) <= 2 + depth
        assert urgent.num_preemptions == 0
        driven.run()


@pytest.mark.parametrize("prefill", TURNS)
@pytest.mark.parametrize("depth", [0, 1])
def test_an_urgent_request_ends_without_a_look_at_the_long_prompt(depth, prefill):
    for long in (100, 400, 600):
        driven, urgent = long_and_urgent(long, scheduling__prefill=prefill, depth=depth)
        slow = next(one for one in driven.scheduler.running if one is not urgent)
        steps = 0
        while not urgent.finished:
            driven.step()
            steps += 1
        assert steps <= 4 + depth
        assert slow.num_computed_tokens < 8 * (steps + 2)
        driven.run()


def test_with_prompts_first_a_row_of_worse_rank_waits_for_them_and_a_better_one_does_not():
    values = {"scheduling__prefill": "prefill_first", "scheduling__max_num_seqs": 3}
    driven, urgent = long_and_urgent(40, **values)
    low = driven.add(2, 20, priority=9)
    while urgent.num_output_tokens < 1:
        driven.step()
    before = low.num_output_tokens
    driven.step()
    assert urgent.num_output_tokens == 2
    assert low.num_output_tokens == before
    driven.run()


@pytest.mark.parametrize("prefill", TURNS)
def test_a_cap_on_prompt_tokens_goes_by_rank_too(prefill):
    driven, urgent = long_and_urgent(
        400, scheduling__max_num_prefill_tokens=3, scheduling__prefill=prefill
    )
    assert steps_to_first_token(driven, urgent) <= 2


def test_an_order_that_does_not_preempt_reads_the_long_prompt_first():
    driven, late = long_and_urgent(400, scheduling__order="fcfs")
    assert steps_to_first_token(driven, late) >= 50


@pytest.mark.parametrize("values", [{}, SWAP])
def test_pages_promised_to_a_long_prompt_are_no_reason_to_wait(values):
    """The long prompt may fill the whole pool; the urgent one needs more than it has so far."""
    driven, urgent = long_and_urgent(156, prompt=24, pages=40, memory__watermark=0, **values)
    assert steps_to_first_token(driven, urgent) <= 4
    driven.run()


def test_equal_ranks_do_not_overtake_what_runs():
    driven, _ = long_and_urgent(100)
    equal = driven.add(3, 3, priority=5)
    assert steps_to_first_token(driven, equal) >= 12


def test_running_requests_and_the_queue_are_one_line():
    """Three prompts of ranks 2, 1 and 3 run, four more wait: tokens come in order of rank."""
    driven = Driven(
        100,
        max_position=200,
        scheduling__order="priority",
        scheduling__max_num_seqs=8,
        scheduling__max_num_batched_tokens=12,
    )
    ranks = [20, 10, 30, 15, 25, 5, 35]
    for rank in ranks:
        driven.add(30, 1, priority=rank)
        if rank == 30:
            driven.step()
    driven.run()
    ended = sorted(driven.requests, key=lambda one: one.first_token_s)
    # The first step gave 12 tokens to rank 10, the best of those that were there.
    assert [one.priority for one in ended] == sorted(ranks)


def test_running_requests_keep_their_rows_while_prompts_of_better_rank_are_read():
    driven = Driven(
        200, max_position=500, scheduling__order="priority", scheduling__max_num_batched_tokens=8
    )
    writers = [driven.add(2, 60, priority=9) for _ in range(3)]
    driven.step(), driven.step()
    driven.add(300, 2, priority=0)
    for _ in range(20):
        before = [one.num_output_tokens for one in writers]
        plan = driven.step()
        assert sum(plan.num_tokens) == 8
        assert [one.num_output_tokens for one in writers] == [count + 1 for count in before]


def test_a_prompt_that_is_not_split_takes_its_step_by_rank_alone():
    """Set-aside rows would keep it out for as long as others write."""
    driven = Driven(
        64,
        scheduling__order="priority",
        scheduling__enable_chunked_prefill=False,
        scheduling__max_model_len=40,
        scheduling__max_num_batched_tokens=40,
    )
    writers = [driven.add(3, 30, priority=9) for _ in range(3)]
    driven.step(), driven.step()
    urgent = driven.add(39, 1, priority=0)
    assert steps_to_first_token(driven, urgent) == 1
    # One row was left. The others go on with the next step.
    assert sorted(one.num_output_tokens for one in writers) == [2, 2, 3]
    driven.run()


def test_a_running_prompt_is_not_overtaken_for_ever():
    """A stream of better ranks that never ends takes all tokens, and the prompt keeps its place:
    the time in which it gets none counts as waiting."""

    def first_token_after(limit_s: float) -> int | None:
        driven = Driven(
            200,
            max_position=500,
            scheduling__order="priority",
            scheduling__max_num_batched_tokens=8,
            scheduling__starvation_limit_s=limit_s,
        )
        long = driven.add(100, 4, priority=5)
        entry = driven.entry(long)
        driven.step()
        for step in range(150):
            driven.add(8, 1, priority=0)
            driven.step()
            driven.check()
            if long.num_output_tokens:
                assert long.num_preemptions == 0 and entry.waited_s <= limit_s + 1
                return step
        return None

    assert first_token_after(1000.0) is None
    assert first_token_after(30.0) in range(30, 30 + 100 // 8 + 3)
    assert first_token_after(60.0) in range(60, 60 + 100 // 8 + 3)


def test_stalled_time_and_queued_time_are_one_sum():
    """Stalled for ten seconds, then displaced: the deadline comes ten seconds earlier."""
    driven = Driven(
        200,
        max_position=500,
        scheduling__order="priority",
        scheduling__max_num_seqs=2,
        scheduling__max_num_batched_tokens=8,
        scheduling__starvation_limit_s=25.0,
    )
    long = driven.add(100, 4, priority=5)
    driven.step()
    first_stall = driven.now_s
    for _ in range(10):
        driven.add(8, 1, priority=0)
        driven.step()
    assert not long.num_preemptions and not driven.entry(long).urgent
    driven.add(90, 40, priority=0), driven.add(90, 40, priority=0)
    while not driven.entry(long).urgent:
        driven.step()
        driven.check()
    assert long.num_preemptions == 1 and driven.now_s - first_stall in (26.0, 27.0)


def test_a_request_that_gets_tokens_again_waits_no_longer():
    driven = Driven(
        200,
        max_position=500,
        scheduling__order="priority",
        scheduling__max_num_batched_tokens=8,
        scheduling__starvation_limit_s=25.0,
    )
    long = driven.add(300, 4, priority=5)
    driven.step()
    for _ in range(10):
        driven.add(8, 1, priority=0)
        driven.step()
    for _ in range(30):
        driven.step()
    driven.check()
    entry = driven.entry(long)
    assert entry.waited_s == 10.0 and not entry.urgent and not driven.scheduler.waiting.stalled


def test_the_last_piece_of_a_stalled_prompt_ends_its_wait():
    driven = Driven(scheduling__order="priority", scheduling__max_num_batched_tokens=8)
    long = driven.add(16, 1, priority=5)
    entry = driven.entry(long)
    driven.step()
    for _ in range(3):
        driven.add(8, 1, priority=0)
        driven.step()
    assert driven.scheduler.waiting.stalled == {long}
    driven.step()
    assert long.finished and entry.waited_s == 3.0


def test_a_cap_on_prompt_tokens_holds_where_the_budget_would_take_all():
    driven = Driven(scheduling__order="priority", scheduling__max_num_prefill_tokens=3)
    driven.add(12, 1)
    driven.run()
    assert [plan.num_tokens for plan in driven.plans] == [[3]] * 4


def test_the_worst_rank_makes_place_for_a_better_one():
    driven = Driven(scheduling__order="priority", scheduling__max_num_seqs=2)
    middle, worst = driven.add(4, 9, priority=3), driven.add(4, 9, priority=5)
    driven.step()
    urgent = driven.add(4, 2, priority=1)
    assert driven.step().preempted == [worst]
    assert driven.scheduler.running == [urgent, middle]


def test_a_request_without_room_is_tried_once_per_step():
    asked = []

    class Counting(ContinuousBatching):
        def admits(self, view):
            asked.append(view.waiting[0])
            return False if view.running else super().admits(view)

    driven = Driven(policy=Counting(), scheduling__order="priority")
    for _ in range(3):
        driven.scheduler._policies = replace(
            driven.scheduler._policies, batching=ContinuousBatching()
        )
        driven.add(6, 9, priority=5)
    driven.step()
    driven.scheduler._policies = replace(driven.scheduler._policies, batching=Counting())
    driven.add(6, 2, priority=0)
    driven.step()
    assert len(driven.scheduler.running) == 3 and len(asked) == 1


def test_a_stalled_request_that_is_ended_leaves_no_deadline():
    driven, _ = long_and_urgent(100, prompt=60)
    driven.step()
    (long, _) = driven.requests
    assert long in driven.scheduler.waiting.stalled
    driven.end(long)
    driven.check()
    assert not driven.scheduler.waiting.stalled and long not in driven.scheduler.waiting._due


def test_rows_set_aside_leave_one_token_for_the_better_rank():
    driven = Driven()
    (reader,) = (driven.add(9, 1),)
    for tokens, rows, prefill, most in [
        (8, 3, None, 5), (8, 7, None, 1), (8, 8, None, 1), (8, 20, None, 1), (0, 3, None, 0),
        (8, 3, 4, 4), (8, 6, 4, 2), (8, 3, 0, 0), (8, 0, None, 8),
    ]:  # fmt: skip
        assert Budget(tokens, prefill, rows).for_request(reader) == most


def test_a_policy_of_few_tokens_serves_the_best_rank_before_all_rows():
    class Sips(ContinuousBatching):
        def budget(self, limit, running, waiting):
            return 2

    driven = Driven(policy=Sips(), scheduling__order="priority")
    for _ in range(3):
        driven.add(2, 40, priority=9)
    for _ in range(6):
        driven.step()
    urgent = driven.add(6, 2, priority=0)
    assert steps_to_first_token(driven, urgent) <= 6
    driven.run()


def test_a_new_request_between_two_decoding_ranks_gets_the_token_of_the_worse_one():
    class Sips(ContinuousBatching):
        tokens = 8

        def budget(self, limit, running, waiting):
            return self.tokens

    policy = Sips()
    driven = Driven(policy=policy, scheduling__order="priority")
    best, *worse = [driven.add(2, 40, priority=rank) for rank in (0, 9, 9)]
    driven.step()
    policy.tokens = 2
    between = driven.add(1, 2, priority=5)
    plan = driven.step()
    assert plan.requests == [best, between] and plan.num_tokens == [1, 1]
    assert driven.scheduler.waiting.stalled == set(worse)


class Youngest(QueuePolicy):
    preemptive = True

    def rank(self, entry):
        return -entry.arrival_number


def watch(scheduler) -> None:
    """Checks while a step is planned: after pages ran out none is admitted, no request takes pages
    from one before it in line, and the line stays sorted."""
    line_up, admit = scheduler._line_up, scheduler._admit
    make_room, preempt = scheduler._make_room, scheduler._preempt
    out_of_pages: list[bool] = []
    taker: list[Request] = []

    def checked_line_up(plan, now_s):
        line_up(plan, now_s)
        out_of_pages.clear()

    def checked_admit(request, found, budget, plan, now_s):
        assert not out_of_pages
        admit(request, found, budget, plan, now_s)
        if scheduler._order.preemptive:
            keys = [scheduler._keys[one] for one in scheduler.running]
            assert keys == sorted(keys)

    def checked_make_room(request, count, plan, now_s):
        taker.append(request)
        made = make_room(request, count, plan, now_s)
        taker.pop()
        return made

    def checked_preempt(victim, now_s):
        if taker:
            out_of_pages.append(True)
            line = scheduler.running
            assert line.index(victim) >= line.index(taker[-1])
        preempt(victim, now_s)

    scheduler._line_up, scheduler._admit = checked_line_up, checked_admit
    scheduler._make_room, scheduler._preempt = checked_make_room, checked_preempt


@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3), st.integers(0, 12)),
        min_size=2,
        max_size=9,
    ),
    budget=st.integers(4, 12),
    prefill=st.sampled_from(TURNS),
    cap=st.sampled_from([None, 2]),
    whole=st.booleans(),
    pages=st.integers(12, 30),
    order=st.sampled_from(["priority", "mlfq", "youngest", "sjf"]),
    victim=st.sampled_from(["last", "least_computed"]),
    depth=st.integers(0, 1),
    swap=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_with_any_settings_all_requests_end_and_queues_and_pages_are_consistent(
    jobs, budget, prefill, cap, whole, pages, order, victim, depth, swap
):
    driven = Driven(
        pages,
        depth=depth,
        order=Youngest() if order == "youngest" else None,
        scheduling__order="fcfs" if order == "youngest" else order,
        scheduling__max_model_len=48,
        scheduling__max_num_batched_tokens=48 if whole else budget,
        scheduling__max_num_prefill_tokens=None if whole else cap,
        scheduling__enable_chunked_prefill=not whole,
        scheduling__prefill=prefill,
        scheduling__victim=victim,
        memory__watermark=0,
        **(SWAP if swap else {}),
    )
    scheduler = driven.scheduler
    watch(scheduler)
    jobs = sorted(jobs, key=lambda job: job[3])
    for now in itertools.count():
        while jobs and jobs[0][3] <= now:
            prompt, output, priority, _ = jobs.pop(0)
            driven.add(prompt, output, priority)
        if not jobs and not scheduler.has_requests:
            break
        before = len(driven.plans)
        driven.step()
        driven.check()
        assert now < 2000
        for plan in driven.plans[before:]:
            assert len(set(plan.requests)) == len(plan.requests) == len(plan.num_tokens)
            assert sum(plan.num_tokens) <= (48 if whole else budget) and min(plan.num_tokens) > 0
    assert all(one.num_output_tokens == one.max_len - one.num_prompt_tokens
               for one in driven.requests)  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_what_one_sorted_line_gives(seed):
    """Against the plainest form of the rule, where pages are plenty: rows set aside, then ranks."""
    draw = random.Random(seed)
    driven = Driven(
        400,
        max_position=200,
        scheduling__order="priority",
        scheduling__max_num_seqs=4,
        scheduling__max_num_batched_tokens=7,
        scheduling__starvation_limit_s=1000.0,
    )
    scheduler = driven.scheduler
    for _ in range(60):
        if draw.random() < 0.4:
            driven.add(draw.randint(1, 30), draw.randint(1, 6), draw.randint(0, 3))
        running = set(scheduler.running)
        queue = list(scheduler.waiting)
        free = 4 - len(running)
        if free < len(queue) and any(
            one.priority > queue[min(free, len(queue) - 1)].priority for one in running
        ):
            driven.step()  # places change hands: another test's matter
            continue
        writers = {one for one in running if one.is_decoding}
        line = sorted(
            [*running, *queue[:free]],
            key=lambda one: (one.priority, one not in running, driven.entry(one).arrival_number),
        )
        tokens, rows, expected = 7, len(writers), {}
        for one in line:
            rows -= one in writers
            most = tokens if one in writers else min(tokens, max(1, tokens - rows))
            count = min(most, one.num_tokens - one.num_computed_tokens)
            if count > 0:
                expected[one] = count
                tokens -= count
        before = len(driven.plans)
        driven.step()
        plan = driven.plans[-1] if len(driven.plans) > before else None
        got = dict(zip(plan.requests, plan.num_tokens, strict=True)) if plan else {}
        assert got == expected
