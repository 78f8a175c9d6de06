"""A reader of a trace gets every step and every finished request once, however small the rings."""

from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_traces import make_metrics, make_step, make_trace

from minserve.trace import RunTrace


class Reader:
    def __init__(self, trace: RunTrace) -> None:
        self.steps: list[int] = []
        self.requests: list[str] = []
        self.tail = trace.follow(
            lambda step: self.steps.append(step.index),
            lambda request: self.requests.append(request.request_id),
        )


@given(
    st.lists(st.sampled_from(["step", "request", "first", "second"]), max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_two_readers_get_everything_once_and_in_order(
    events: list[str], max_steps: int, max_requests: int
) -> None:
    trace = RunTrace(max_steps, max_requests)
    readers = {"first": Reader(trace), "second": Reader(trace)}
    num_steps = num_requests = 0
    for event in events:
        if event == "step":
            trace.append(make_step(num_steps))
            num_steps += 1
        elif event == "request":
            trace.finish_request(f"{num_requests}", 0, make_metrics(num_requests), "stop")
            num_requests += 1
        else:
            readers[event].tail.catch_up()
    for reader in readers.values():
        reader.tail.catch_up()
        assert reader.steps == list(range(num_steps))
        assert reader.requests == [f"{number}" for number in range(num_requests)]


def test_nothing_is_read_before_it_is_asked_for_or_about_to_be_dropped() -> None:
    trace = RunTrace(max_steps=3)
    reader = Reader(trace)
    for index in range(5):
        trace.append(make_step(index))
    assert reader.steps == [0, 1], "the ring of three has dropped two"


def test_a_late_reader_begins_with_the_oldest_kept_step() -> None:
    trace = RunTrace(max_steps=4)
    for index in range(10):
        trace.append(make_step(index))
    reader = Reader(trace)
    reader.tail.catch_up()
    assert reader.steps == [6, 7, 8, 9]


def test_readers_in_other_threads_miss_nothing_while_the_trace_is_written() -> None:
    trace = RunTrace(max_steps=7, max_requests=7)
    reader = Reader(trace)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            reader.tail.catch_up()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=read) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for index in range(3000):
            trace.append(make_step(index))
            trace.finish_request(f"{index}", 0, make_metrics(0), "stop")
    finally:
        done.set()
        sys.setswitchinterval(before)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    reader.tail.catch_up()
    assert reader.steps == list(range(3000))
    assert reader.requests == [f"{index}" for index in range(3000)]


@pytest.mark.parametrize("ended", range(5))
def test_the_load_is_that_of_the_newest_step_until_as_many_have_ended(ended: int) -> None:
    trace = make_trace(requests=0)
    newest = trace.newest
    assert newest is not None and (newest.num_running, newest.num_waiting) == (2, 2)
    for number in range(ended):
        trace.finish_request(f"{number}", 0, make_metrics(number), "abort")
    assert trace.load() == ((2, 2) if ended < 4 else (0, 0))
    trace.append(make_step(6))
    assert trace.load() == (2, 0)
    assert RunTrace().load() == (0, 0)
