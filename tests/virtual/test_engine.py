"""Fast-forward is single-stepping, only sooner: traces, timings and pages are compared exactly."""

from __future__ import annotations

from dataclasses import fields

import pytest
from engine.fakes import tiny_spec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import TimedRequest, Traffic, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import QueueFullError, SamplingParams, Status
from minserve.scheduling import ContinuousBatching
from minserve.trace import RunTrace
from minserve.virtual import CostModel

COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=0.001)


def engine(pages=64, policy=None, cost=COST, **values):
    page_bytes = 16 * tiny_spec(1024).kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 8,
            "scheduling.max_num_batched_tokens": 64,
            "memory.kv_bytes": pages * page_bytes,
            **{name.replace("__", "."): value for name, value in values.items()},
        }
    )
    return build_virtual_engine(tiny_spec(1024), config, cost, parts=EngineParts(policy))


def test_modelled_time_has_no_host_to_overlap_with():
    with pytest.raises(ConfigError, match=r"async_scheduling=True hides the host's time"):
        engine(scheduling__async_scheduling=True)


def observed(built):
    """Everything a run leaves behind, but the host's own clock."""
    snapshot = built.trace.snapshot()
    return snapshot.totals, snapshot.steps, snapshot.requests, built.clock.now()


def both(traffic, **options):
    slow, fast = engine(**options), engine(**options)
    one, other = drive(slow, traffic), drive(fast, traffic, fast=True)
    assert observed(slow) == observed(fast)
    for mine, theirs in zip(one.requests, other.requests, strict=True):
        assert [getattr(mine, each.name) for each in fields(mine)] == [
            getattr(theirs, each.name) for each in fields(theirs)
        ]
    fast.memory.check()
    assert fast.memory.pool.num_owned == slow.memory.pool.num_owned == 0
    return slow


DISCIPLINES = (
    [{}, {"scheduling__policy": "static"}]
    + [{"scheduling__order": order} for order in ("sjf", "priority", "mlfq")]
    + [{"scheduling__prefill": turns} for turns in ("decode_first", "prefill_first")]
    + [{"kernels__padding": kind} for kind in ("longest", "power_of_two", "ladder")]
    + [{"kernels__padding": "batch", "scheduling__policy": "static"}]
)


@given(
    requests=st.lists(
        st.tuples(st.floats(0, 60), st.integers(1, 150), st.integers(1, 90), st.integers(0, 2)),
        min_size=1,
        max_size=14,
    ),
    pages=st.sampled_from([18, 30, 64]),
    discipline=st.sampled_from(DISCIPLINES),
    max_num_seqs=st.sampled_from([1, 3, 8]),
)
@settings(max_examples=150, deadline=None)
def test_fast_forward_is_single_stepping(requests, pages, discipline, max_num_seqs):
    timed = tuple(
        TimedRequest(gap, (1,) * prompt, fixed_length(output), priority)
        for gap, prompt, output, priority in requests
    )
    both(
        Traffic("drawn", timed, rate_per_s=1000.0, seed=0),
        pages=pages,
        scheduling__max_num_seqs=max_num_seqs,
        **discipline,
    )


ENDS = {
    "length": {"ignore_eos": True},
    "another stop token": {"ignore_eos": True, "stop_token_ids": (5,)},
    "its stop token": {"ignore_eos": True, "stop_token_ids": (0,), "min_tokens": 3},
    "eos": {"min_tokens": 4},
}
"""Every token drawn is 0, the end of sequence of `tiny_spec`."""

CHOSEN = {
    "any": lambda request: True,
    "waiting": lambda request: request.status is Status.WAITING,
    "running": lambda request: request.status is Status.RUNNING,
    "preempted": lambda request: request.status is Status.PREEMPTED,
    "leader": lambda request: request.sample_index == 0 and request.params.n > 1,
}


class Interfered:
    """An engine that is interfered with between steps, and all that can be seen of it."""

    def __init__(self, fast, **options):
        self.engine, self.fast = engine(**options), fast
        self.traces, self.requests = [self.engine.trace], []

    def run(self, until_s=float("inf"), until_preemption=False):
        """Steps that begin before `until_s`; none after one in which a request was preempted, if
        that is asked for."""
        built = self.engine
        while built.has_work and built.clock.now() < until_s:
            if self.fast:
                built.fast_forward(until_s)
                if built.clock.now() >= until_s:
                    break
            if built.step().num_preempted and until_preemption:
                return

    def add(self, prompt, output, n, ends, priority):
        params = SamplingParams(max_tokens=output, n=n, **ENDS[ends])
        name = str(len(self.requests))
        self.requests += self.engine.add(name, (1,) * prompt, params, priority=priority)

    def abort(self, kind, pick, whole):
        live = [request for request in self.engine.live_requests() if CHOSEN[kind](request)]
        if live:
            chosen = live[pick % len(live)]
            if whole:
                self.engine.abort(chosen.request_id)
            else:
                self.engine.abort_requests([chosen])

    def fresh_trace(self):
        self.traces.append(RunTrace())
        self.engine.trace = self.traces[-1]

    def back_to_trace(self, pick):
        self.engine.trace = self.traces[pick % len(self.traces)]

    def seen(self):
        """Traces, requests, pages and news; the news are taken."""
        snapshots = [trace.snapshot() for trace in self.traces]
        memory = self.engine.memory
        return {
            "traces": [(each.totals, each.steps, each.requests) for each in snapshots],
            "requests": [self._fields(request) for request in self.requests],
            "pages": [memory.blocks_of(request) for request in self.requests],
            "use": (memory.use(), memory.pool.num_owned),
            # Sorted: an order that ranks by service sorts the rows again in every single step.
            "updates": sorted(_label(request) for request in self.engine.take_updates()),
            "now": self.engine.clock.now(),
        }

    @staticmethod
    def _fields(request):
        # A row of a step that is over says nothing: repeated steps set none.
        row = {"pending_row": 0} if not request.num_pending_tokens else {}
        values = {each.name: getattr(request, each.name) for each in fields(request)}
        return values | {"leader": request.leader and _label(request.leader)} | row


def _label(request):
    return request.request_id, request.sample_index


ADD = st.tuples(
    st.just("add"),
    st.integers(1, 150),
    st.integers(4, 90),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from(["length", "length", *ENDS]),
    st.integers(0, 2),
)
INTERFERENCE = st.one_of(
    ADD,
    st.tuples(
        st.just("abort"), st.sampled_from(list(CHOSEN)), st.integers(0, 9), st.sampled_from([0, 1])
    ),
    st.just(("fresh_trace",)),
    st.tuples(st.just("back_to_trace"), st.integers(0, 3)),
)


@given(
    first=st.lists(ADD, min_size=1, max_size=6),
    then=st.lists(st.tuples(st.floats(0, 0.05), st.booleans(), INTERFERENCE), max_size=12),
    pages=st.sampled_from([18, 24, 64]),
    discipline=st.sampled_from(DISCIPLINES),
    max_num_seqs=st.sampled_from([1, 3, 8]),
)
@example(  # samples wait for one that was aborted while it waited
    first=[("add", 1, 4, 1, "length", 0)] * 2
    + [("add", 1, 25, 1, "length", 0), ("add", 1, 49, 1, "length", 0)],
    then=[
        (0.0, False, ("add", 1, 4, 3, "length", 0)),
        (0.03125, False, ("abort", "any", 0, 0)),
        (0.015625, False, ("abort", "any", 1, 0)),
        (0.03125, False, ("fresh_trace",)),
    ],
    pages=18,
    discipline={},
    max_num_seqs=1,
)
@settings(max_examples=150, deadline=None)
def test_fast_forward_is_single_stepping_between_any_two_interferences(
    first, then, pages, discipline, max_num_seqs
):
    options = {"pages": pages, "scheduling__max_num_seqs": max_num_seqs} | discipline
    slow, fast = Interfered(False, **options), Interfered(True, **options)
    for gap_s, until_preemption, (action, *drawn) in [(0.0, False, add) for add in first] + then:
        for one in (slow, fast):
            until_s = one.engine.clock.now() + gap_s
            one.run(until_s, until_preemption)
        assert slow.seen() == fast.seen()
        for one in (slow, fast):
            getattr(one, action)(*drawn)
    for one in (slow, fast):
        one.run()
        one.engine.audit()
        assert one.engine.memory.pool.num_owned == 0
    assert slow.seen() == fast.seen()


@pytest.mark.parametrize("kind", ["waiting", "preempted"])
def test_what_was_counted_in_the_step_before_an_abort_is_not_counted_again(kind):
    places = 1 if kind == "waiting" else 8
    slow, fast = (Interfered(f, pages=18, scheduling__max_num_seqs=places) for f in (False, True))
    for one in (slow, fast):
        for _ in range(3):
            one.add(60, 200, 1, "length", 0)
        while not any(CHOSEN[kind](request) for request in one.requests if request.num_tokens > 70):
            one.engine.step()
            if kind == "waiting" and one.requests[0].num_tokens > 70:
                break
        for request in one.requests:
            if CHOSEN[kind](request):
                one.engine.abort(request.request_id)
        before = one.engine.trace.totals.steps
        one.run()
        assert one.engine.trace.totals.steps > before + 50
    assert slow.seen() == fast.seen()


def test_what_was_refused_between_repeated_steps_is_counted_once():
    full = {"scheduling__max_num_seqs": 1, "scheduling__max_queued_requests": 0}
    slow, fast = (Interfered(is_fast, pages=18, **full) for is_fast in (False, True))
    for one in (slow, fast):
        one.add(6, 80, 1, "length", 0)
        for _ in range(3):
            one.engine.step()
        for _ in range(2):
            with pytest.raises(QueueFullError):
                one.add(6, 80, 1, "length", 0)
        one.run()
        assert one.engine.trace.totals.refused == 2
        assert one.engine.trace.totals.arrived == 3
    assert slow.seen() == fast.seen()


class FailsAt:
    """A cost that raises `error` once, when it is asked for the `at`-th time from now."""

    device, dtype = COST.device, COST.dtype

    def __init__(self):
        self.at, self.error = 0, None

    def step_s(self, *work):
        self.at -= 1
        if self.at == 0:
            raise self.error
        return COST.step_s(*work)


@pytest.mark.parametrize("error", [RuntimeError("no such cost"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 7, 12, 13, 14, 15, 16, 40])
def test_an_error_in_the_middle_leaves_trace_tokens_and_pages_in_agreement(error, at):
    cost = FailsAt()
    built = engine(cost=cost)
    requests = [built.add(str(n), (1,) * (20 + n), fixed_length(90))[0] for n in range(2)]
    built.step()
    built.step()
    steps = built.trace.totals.steps
    cost.at, cost.error = at, error
    with pytest.raises(type(error)):
        built.fast_forward()
    built.audit()
    totals, memory = built.trace.totals, built.memory
    assert totals.steps == steps + at - 1
    assert totals.sampled_tokens == sum(request.num_output_tokens for request in requests)
    for request in requests:
        assert request.num_output_tokens == totals.steps
        if not request.finished:
            computed = request.num_computed_tokens
            assert computed == request.num_tokens - 1
            assert len(memory.blocks_of(request)) == memory.blocks_for(computed)
    if built.live_requests():
        assert built.trace.newest.kv_tokens == memory.use().kv_tokens
    while built.has_work:
        built.step()
    lengths = {"length": 90, "error": steps + at - 1}
    assert [r.num_output_tokens for r in requests] == [lengths[r.finish_reason] for r in requests]
    assert built.trace.totals.sampled_tokens == sum(r.num_output_tokens for r in requests)
    assert memory.pool.num_owned == 0


def test_a_lone_writer_is_passed_over_in_one_go():
    built = engine()
    built.add("one", [1] * 20, fixed_length(500))
    built.step()
    built.step()
    assert built.fast_forward() == 497
    assert built.trace.totals.steps == 499
    built.step()
    assert not built.has_work and built.trace.totals.sampled_tokens == 500


def test_no_step_begins_once_the_time_has_come():
    built = engine()
    built.add("one", [1] * 20, fixed_length(500))
    built.step()
    built.step()
    soon = built.clock.now() + 0.0105
    steps = built.fast_forward(soon)
    assert 5 < steps < 15
    assert built.clock.now() >= soon > built.trace.newest.start_s
    assert built.fast_forward(soon) == 0


class Careful(ContinuousBatching):
    def budget(self, limit, running, waiting):
        return limit - 1


@pytest.mark.parametrize("why", ["a prompt is left", "detail", "a budget of one's own", "eos"])
def test_what_has_to_be_decided_or_told_is_not_passed_over(why):
    options = {"trace__per_request": True} if why == "detail" else {}
    built = engine(policy=Careful() if "budget" in why else None, **options)
    params = fixed_length(50) if why != "eos" else SamplingParams(max_tokens=50, min_tokens=9)
    built.add("one", [1] * (300 if why == "a prompt is left" else 20), params)
    built.step()
    if why != "a prompt is left":
        built.step()
    assert built.fast_forward() == 0


def test_a_prefix_cache_gets_the_whole_pool_as_in_a_real_engine():
    one_at_a_time = {"scheduling__max_num_seqs": 1, "scheduling__max_model_len": 64}
    assert engine(pages=64, **one_at_a_time).memory.pool.num_blocks == 4
    cached = engine(pages=64, memory__prefix_cache="radix", **one_at_a_time)
    assert cached.memory.pool.num_blocks == 64
