"""An error has an owner: one request ends, and all others are computed as if it had not been."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling.driven import SWAP, Driven

from minserve.memory import IntegrityError
from minserve.request import Request, SamplingParams, Status
from minserve.scheduling import (
    ContinuousBatching,
    HookError,
    MultiLevelFeedback,
    PriorityFirst,
    QueueEntry,
    QueuePolicy,
    StaticBatching,
    WaitingQueue,
)


class Fault(Exception):
    """What is injected."""


class FailsAt:
    """A callable that raises at its `at`-th call, before or after the real one."""

    def __init__(self, real, at: int, after: bool = False) -> None:
        self.real, self.left, self.after = real, at, after

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Fault
        result = self.real(*args, **kwargs)
        if self.left == 0:
            raise Fault
        return result


def run_with_faults(driven: Driven) -> list[Request]:
    """Steps until nothing is left; whatever is raised ends its culprit. Returns the culprits."""
    ended = []
    for _ in range(3000):
        if not driven.scheduler.has_requests:
            break
        try:
            driven.step()
        except Fault:
            culprit = driven.scheduler.culprit
            assert culprit is not None and not culprit.finished
            held = list(driven.scheduler.requests())
            assert all(held.count(one) == 1 for one in driven.requests if not one.finished)
            driven.end(culprit, "error")
            ended.append(culprit)
        driven.check()
    assert not driven.scheduler.has_requests
    assert driven.memory.pool.num_owned == 0
    for request in driven.requests:
        wanted = request.max_len - request.num_prompt_tokens
        assert request in ended or request.num_output_tokens == wanted
    return ended


CROWD = [(9, 12, 2), (14, 9, 0), (5, 14, 1), (20, 6, 2), (7, 7, 0), (9, 12, 1)]
"""More than ten pages hold: prompt, output, priority."""


@pytest.mark.parametrize("order", ["fcfs", "priority", "mlfq"])
@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("admit", {}),
        ("reserve", {}),
        ("release", {}),
        ("find", {}),
        ("needed_blocks", {}),
        ("fits", {}),
        ("admit", {"memory__prefix_cache": "radix"}),
        ("swap_out", SWAP),
        ("admit", SWAP),
    ],
)
def test_a_memory_fault_ends_one_request_and_no_other(order, method, values):
    happened = 0
    for at in range(1, 16):
        driven = Driven(10, scheduling__order=order, memory__watermark=0, **values)
        for job in CROWD:
            driven.add(*job)
        real = getattr(driven.memory, method)
        if method == "release":  # The scheduler's own calls only: see `remove`.
            driven.memory.release = real
            preempt = driven.scheduler._preempt
            count = [at]

            def release_fails_once(victim, now_s, driven=driven, preempt=preempt, count=count):
                def failing(request):
                    count[0] -= 1
                    if not count[0]:
                        raise Fault
                    type(driven.memory).release(driven.memory, request)

                driven.memory.release = failing
                try:
                    preempt(victim, now_s)
                finally:
                    del driven.memory.release

            driven.scheduler._preempt = release_fails_once
        else:
            setattr(driven.memory, method, FailsAt(real, at))
        ended = run_with_faults(driven)
        assert len(ended) <= 1
        happened += len(ended)
    assert happened


def test_an_admission_that_fails_half_way_leaves_the_request_in_the_queue_and_no_pages():
    driven = Driven()
    first, second = driven.add(), driven.add()
    driven.memory.admit = FailsAt(driven.memory.admit, 1, after=True)
    with pytest.raises(Fault):
        driven.step()
    assert list(driven.scheduler.waiting) == [first, second]
    assert driven.scheduler.culprit is first and first.status is Status.WAITING
    driven.check()
    driven.run()  # It was not ended: then it simply begins again.
    assert first.num_output_tokens == second.num_output_tokens == 4


def test_a_failing_release_does_not_hide_why_the_admission_failed():
    driven = Driven()
    driven.add()

    def broken(request):
        raise KeyError("release")

    driven.memory.admit, driven.memory.release = FailsAt(None, 1), broken
    with pytest.raises(Fault):
        driven.step()


@pytest.mark.parametrize("kind", [QueuePolicy, MultiLevelFeedback])
def test_an_order_that_raises_for_one_request_ends_that_one(kind):
    class Touchy(kind):
        preemptive = True
        victim = None

        def rank(self, entry):
            if entry.request is self.victim and entry.request.num_output_tokens >= 2:
                raise Fault
            return entry.request.num_output_tokens // 2

    for pages in (5, 16):
        order = Touchy()
        driven = Driven(pages, order=order, scheduling__max_num_seqs=2)
        requests = [driven.add(5, 7) for _ in range(4)]
        order.victim = requests[1]
        assert run_with_faults(driven) == [requests[1]]


def test_an_order_that_raises_while_the_queue_is_ranked_again_ends_that_one():
    class Touchy(QueuePolicy):
        needs_prefixes = True
        ready = False

        def rank(self, entry):
            if self.ready and entry.request.request_id == "r2":
                raise Fault
            return 0

    order = Touchy()
    driven = Driven(order=order, memory__prefix_cache="radix", scheduling__max_num_seqs=1)
    requests = [driven.add(5, 3) for _ in range(4)]
    order.ready = True
    assert run_with_faults(driven) == [requests[2]]


def test_a_sample_whose_rank_fails_when_it_is_queued_takes_no_other_with_it():
    class Touchy(QueuePolicy):
        def rank(self, entry):
            if entry.request.sample_index == 1:
                raise Fault
            return 0

    driven = Driven(order=Touchy())
    samples = driven.add(6, 4, n=4)
    assert run_with_faults(driven) == [samples[1]]


def test_a_request_whose_prediction_fails_was_never_queued():
    class Broken:
        def predict(self, request):
            raise Fault

    driven = Driven(scheduling__order="sjf", predictor=Broken())
    with pytest.raises(Fault):
        driven.add()
    (request,) = driven.requests
    assert driven.scheduler.culprit is request and not driven.scheduler.has_requests
    driven.end(request, "error")
    driven.check()


@pytest.mark.parametrize("method", ["budget", "idle_places"])
def test_a_policy_that_fails_about_all_requests_blames_none_of_them(method):
    class Broken(ContinuousBatching):
        pass

    driven = Driven(policy=Broken())
    driven.add()
    driven.step()

    def fails(*args):
        raise Fault

    setattr(driven.scheduler._policies.batching, method, fails)
    with pytest.raises(Fault):
        driven.step()
    assert driven.scheduler.culprit is None
    driven.check()


def test_a_policy_that_fails_about_one_request_ends_it():
    class Broken(ContinuousBatching):
        def admits(self, view):
            if view.waiting[0].request_id == "r1":
                raise Fault
            return super().admits(view)

    driven = Driven(policy=Broken())
    requests = [driven.add() for _ in range(4)]
    assert run_with_faults(driven) == [requests[1]]


@pytest.mark.parametrize("at", range(1, 7))
def test_a_static_batch_goes_on_without_the_request_that_could_not_be_admitted(at):
    policy = StaticBatching()
    driven = Driven(policy=policy)
    for _ in range(6):
        driven.add(6, 3)
    driven.memory.admit = FailsAt(driven.memory.admit, at)
    assert len(run_with_faults(driven)) == 1
    assert min(plan.idle_places for plan in driven.plans) >= 0


BAD_RANKS = [None, math.nan, "first", 1j, [1], np.array([1.0, 2.0])]


@pytest.mark.parametrize("value", BAD_RANKS, ids=repr)
def test_a_rank_that_is_no_number_is_refused_before_it_is_stored(value):
    class Odd(QueuePolicy):
        def rank(self, entry):
            return value if entry.request.request_id == "r1" else 0

    driven = Driven(order=Odd())
    first = driven.add()
    with pytest.raises(HookError, match=r"Odd\.rank answered .* for request r1: expected a number"):
        driven.add()
    bad = driven.scheduler.culprit
    assert bad is driven.requests[1]
    driven.end(bad, "error")
    driven.check()
    third = driven.add()
    driven.run()
    assert first.num_output_tokens == third.num_output_tokens == 4


@pytest.mark.parametrize(
    "value", [3, 2.5, True, math.inf, -math.inf, np.float32(2), Fraction(1, 3)]
)
def test_every_real_number_is_a_rank(value):
    class Odd(QueuePolicy):
        preemptive = True

        def rank(self, entry):
            return value

    driven = Driven(order=Odd())
    driven.add(), driven.add()
    driven.run()


def test_a_missing_priority_is_refused_in_a_sentence():
    driven = Driven(scheduling__order="priority")
    with pytest.raises(HookError, match=r"PriorityFirst\.rank answered None \(NoneType\)"):
        driven.add(priority=None)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1, "12", 1j], ids=repr)
def test_a_predicted_length_that_is_no_length_is_refused(value):
    class Odd:
        def predict(self, request):
            return value

    driven = Driven(scheduling__order="sjf", predictor=Odd())
    with pytest.raises(HookError, match=r"Odd\.predict answered .* expected a finite number"):
        driven.add()
    assert not driven.scheduler.has_requests


@pytest.mark.parametrize("method", ["budget", "idle_places"])
@pytest.mark.parametrize("value", [None, 4.0, -1, True, math.nan, "8"], ids=repr)
def test_a_policys_number_that_is_no_count_is_refused_and_no_request_is_blamed(method, value):
    policy = type("Odd", (ContinuousBatching,), {method: lambda *_: value})()
    driven = Driven(policy=policy)
    driven.add()
    with pytest.raises(HookError, match=rf"Odd\.{method} answered .* expected a whole number"):
        driven.step()
    assert driven.scheduler.culprit is None
    driven.check()


def test_a_long_answer_is_shortened_in_the_message():
    class Odd(QueuePolicy):
        def rank(self, entry):
            return "x" * 10_000

    with pytest.raises(HookError) as caught:
        Driven(order=Odd()).add()
    assert len(str(caught.value)) < 200


def test_remove_is_right_for_a_request_between_two_places():
    def one_that_is_nowhere(driven, request):
        driven.scheduler.waiting.remove(request)
        return request

    def popped_and_not_yet_running(driven, request):
        return driven.scheduler.waiting.pop(0.0)

    def running_and_not_yet_popped(driven, request):
        driven.scheduler.running.append(request)
        return request

    def noted_and_not_in_the_line(driven, request):
        driven.scheduler.waiting._line.clear()
        return request

    def with_a_status_of_another_place(driven, request):
        request.status = Status.RUNNING
        return request

    def out_of_the_running_and_not_yet_queued(driven, request):
        driven.step()
        driven.scheduler.running.remove(request)
        request.status = Status.PREEMPTED
        return request

    def removed_twice(driven, request):
        driven.end(request)
        return request

    for state in (
        one_that_is_nowhere,
        popped_and_not_yet_running,
        running_and_not_yet_popped,
        noted_and_not_in_the_line,
        with_a_status_of_another_place,
        out_of_the_running_and_not_yet_queued,
        removed_twice,
    ):
        driven = Driven()
        odd = state(driven, driven.add())
        driven.end(odd)
        assert odd.status is Status.FINISHED
        assert not driven.scheduler.has_requests, state.__name__
        assert driven.memory.pool.num_owned == 0
        other = driven.add()
        driven.run()
        assert other.num_output_tokens == 4


def damaged(name: str) -> Driven:
    """Two requests run, two wait, two samples wait for theirs; then one thing is wrong."""
    driven = Driven(scheduling__max_num_seqs=2, scheduling__starvation_limit_s=50.0)
    a, b, c, d = [driven.add() for _ in range(4)]
    leader, follower, other = driven.add(n=3)
    driven.step()
    driven.check()
    scheduler = driven.scheduler
    waiting, samples = scheduler.waiting, scheduler._samples
    match name:
        case "running and waiting":
            scheduler.running[0] = c
            c.status = Status.RUNNING
        case "status of another place":
            a.status = Status.WAITING
        case "status of a waiting request":
            c.status = Status.FINISHED
        case "finished and running":
            a.finish_reason = "stop"
        case "finished and waiting":
            d.finish_reason = "stop"
        case "too many":
            scheduler._max_num_seqs = 1
        case "in the line, not noted":
            del waiting._where[c]
        case "noted, not in the line":
            del waiting._line[0]
        case "out of order":
            waiting._line.reverse()
        case "twice in the line":
            waiting._line.insert(0, waiting._line[0])
        case "a deadline of one that does not wait":
            waiting._due[a] = 3.0
        case "a deadline that was lost":
            waiting._deadlines.clear()
        case "pages while waiting":
            driven.memory.release(b)
            driven.memory.admit(c)
            driven.memory.reserve(c, 4)
        case "a leader that is nowhere":
            waiting.remove(leader)
        case "a follower of another leader":
            follower.leader = a
        case "a follower twice":
            samples._followers[leader].append(follower)
        case "an empty group":
            samples._followers[leader].clear()
        case "a follower that is queued too":
            waiting.push(other, 0.0)
        case _:
            raise ValueError(name)
    return driven


DAMAGES = [
    ("running and waiting", "is running and waiting"),
    ("status of another place", "is running, status waiting"),
    ("status of a waiting request", "is waiting, status finished"),
    ("finished and running", "is finished and still running"),
    ("finished and waiting", "is finished and still waiting"),
    ("too many", "2 requests run in 1 places"),
    ("in the line, not noted", "hold different requests"),
    ("noted, not in the line", "hold different requests"),
    ("out of order", "out of order"),
    ("twice in the line", "out of order"),
    ("a deadline of one that does not wait", "does not wait has a deadline"),
    ("a deadline that was lost", "miss its deadline"),
    ("pages while waiting", "is waiting and holds pages"),
    ("a leader that is nowhere", "wait for one that is nowhere"),
    ("a follower of another leader", "waits for another's prompt"),
    ("a follower twice", "is waiting for its first sample and|waits twice"),
    ("an empty group", "none wait"),
    ("a follower that is queued too", "is waiting and waiting for its first sample"),
]


@pytest.mark.parametrize(("name", "words"), DAMAGES)
def test_the_audit_sees_damage_and_clear_leaves_a_scheduler_that_works(name, words):
    driven = damaged(name)
    with pytest.raises(IntegrityError, match=words):
        driven.scheduler.check()
    driven.scheduler.clear()
    driven.scheduler.check()
    assert not driven.scheduler.has_requests and driven.scheduler.culprit is None
    for request in driven.requests:
        driven.end(request)
    driven.memory.check()
    driven.scheduler._max_num_seqs = 2
    new = driven.add(n=2)
    driven.run()
    assert [request.num_output_tokens for request in new] == [4, 4]


def test_clear_makes_a_static_batch_form_again_even_if_the_policy_fails():
    driven = Driven(policy=StaticBatching())
    driven.add(), driven.add()
    driven.step()
    driven.scheduler.clear()
    for request in driven.requests:
        driven.end(request)
    assert driven.scheduler._policies.batching.idle_places([]) == 0

    class Broken(ContinuousBatching):
        def clear(self):
            raise Fault

    Driven(policy=Broken()).scheduler.clear()


@given(
    order=st.sampled_from(["fcfs", "sjf", "lpm", "priority", "mlfq"]),
    jobs=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 2), st.integers(1, 3)),
        min_size=2,
        max_size=8,
    ),
    faults=st.lists(
        st.tuples(
            st.sampled_from(
                ["admit", "reserve", "find", "needed_blocks", "fits", "swap_out", "rank"]
            ),
            st.integers(1, 40),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda fault: fault[0],
    ),
    pages=st.integers(10, 24),
    prefill=st.sampled_from(["mixed", "decode_first", "prefill_first"]),
    swap=st.booleans(),
    depth=st.integers(0, 1),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_fault_at_any_call_ends_its_request_only(
    order, jobs, faults, pages, prefill, swap, depth
):
    driven = Driven(
        pages,
        depth=depth,
        scheduling__order=order,
        scheduling__prefill=prefill,
        scheduling__max_model_len=40,
        memory__prefix_cache="radix",
        **(SWAP if swap else {}),
    )
    for prompt, output, priority, n in jobs:
        driven.add(prompt, output, priority, n=n)
    for method, at, after in faults:
        owner = driven.scheduler._order if method == "rank" else driven.memory
        after = after and method in ("admit", "find", "needed_blocks", "fits", "rank")
        setattr(owner, method, FailsAt(getattr(owner, method), at, after))
    assert len(run_with_faults(driven)) <= len(faults)


def test_a_queue_stays_consistent_when_a_push_fails():
    class Touchy(QueuePolicy):
        def rank(self, entry):
            if entry.request.request_id == "bad":
                raise Fault
            return 1

    queue = WaitingQueue(Touchy(), limit_s=5.0)
    good, bad = (Request(name, [1], SamplingParams(), 0.0, 0) for name in ("good", "bad"))
    queue.push(good, 0.0)
    with pytest.raises(Fault):
        queue.push(bad, 0.0)
    queue.check()
    assert list(queue) == [good] and not queue.remove(bad) and queue.remove(good)
    assert isinstance(PriorityFirst().rank(QueueEntry(good)), int)
