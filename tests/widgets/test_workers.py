"""One run at a time, stops, errors that are not lost, and a cell that runs again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from widgets import workers
from widgets.workers import Job, Pace, Stopped, Worker, engine_turn, raise_panel_errors


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    workers._live.clear()
    yield
    workers._live.clear()


def until(told: threading.Event) -> None:
    assert told.wait(10)


def spin(job: Job) -> None:
    while True:
        job.check()
        time.sleep(0.005)


def test_start_returns_while_the_run_goes_on_and_a_second_start_is_refused():
    go = threading.Event()
    worker = Worker("one")
    assert worker.start(lambda job: until(go) or 7)
    assert worker.busy
    assert not worker.start(lambda job: 8)
    assert not worker.wait(0.01)
    go.set()
    assert worker.wait(10)
    assert (worker.state, worker.result, worker.busy) == ("done", 7, False)


def test_stop_ends_the_run_within_half_a_second():
    worker = Worker("one")
    worker.start(spin)
    time.sleep(0.02)
    start = time.monotonic()
    worker.stop()
    assert worker.wait(10)
    assert time.monotonic() - start < 0.5
    assert worker.state == "stopped"
    assert worker.error is None


def test_two_runs_never_overlap_and_the_second_says_for_whom_it_waits():
    running, most, heard = 0, 0, []
    go = threading.Event()

    def work(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        until(go)
        running -= 1

    first, second = Worker("first"), Worker("second", lambda w: heard.append((w.state, w.text)))
    first.start(work)
    while first.state != "running":
        time.sleep(0.005)
    second.start(work)
    while not any("first" in text for _, text in heard):
        time.sleep(0.005)
    assert second.state == "waiting"
    go.set()
    assert first.wait(10) and second.wait(10)
    assert most == 1
    assert [state for state, _ in heard][-1] == "done"


def test_a_run_in_line_can_be_stopped_and_leaves_the_line():
    go = threading.Event()
    first, second, third = (Worker(name) for name in ("first", "second", "third"))
    first.start(lambda job: until(go))
    second.start(lambda job: 2)
    third.start(lambda job: 3)
    second.stop()
    assert second.wait(10)
    assert second.state == "stopped"
    go.set()
    assert third.wait(10)
    assert third.result == 3


def test_a_cell_takes_its_turn_like_a_panel_and_may_ask_twice():
    order = []
    worker = Worker("panel")
    with engine_turn("cell"), engine_turn("cell again"):
        worker.start(lambda job: order.append("panel"))
        time.sleep(0.05)
        order.append("cell")
    assert worker.wait(10)
    assert order == ["cell", "panel"]
    with engine_turn("next"):
        pass


def test_an_error_is_kept_and_raised_by_the_last_cell_with_the_panels_name():
    worker = Worker("the panel")
    worker.start(lambda job: 1 / 0)
    assert worker.wait(10)
    assert worker.state == "failed"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            raise_panel_errors()
        assert caught.value.__notes__ == ["in the panel “the panel”"]
    worker.start(lambda job: 1)
    assert worker.wait(10)
    raise_panel_errors()


def test_several_errors_come_as_a_group_after_waiting_for_those_under_way():
    def fail(job: Job) -> None:
        time.sleep(0.05)
        raise ValueError("no")

    panels = [Worker("a"), Worker("b")]
    for worker in panels:
        worker.start(fail)
    with pytest.raises(BaseExceptionGroup) as caught:
        raise_panel_errors(wait_s=10)
    assert len(caught.value.exceptions) == 2


def test_an_error_while_a_change_is_shown_is_not_lost():
    def on_change(worker: Worker) -> None:
        if worker.state == "done":
            raise KeyError("view")

    worker = Worker("one", on_change)
    worker.start(lambda job: 1)
    assert worker.wait(10)
    with pytest.raises(KeyError):
        raise_panel_errors()


def test_headless_the_run_is_over_when_start_returns(monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    threads = []
    worker = Worker("one")
    assert worker.start(lambda job: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]
    assert worker.state == "done"


def test_a_run_cannot_wait_for_itself():
    worker = Worker("one")
    worker.start(lambda job: worker.wait())
    assert worker.wait(10)
    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        raise_panel_errors()


def test_a_cell_that_runs_again_stops_its_old_panels_and_forgives_their_errors(monkeypatch):
    monkeypatch.setattr(workers, "current_cell", lambda: ("cell", "first"))
    broken, running = Worker("broken"), Worker("running")
    broken.start(lambda job: 1 / 0)
    assert broken.wait(10)
    running.start(spin)
    monkeypatch.setattr(workers, "current_cell", lambda: ("cell", "second"))
    mended = Worker("broken")
    assert running.wait(10)
    raise_panel_errors()
    mended.start(lambda job: 1 / 0)
    assert mended.wait(10)
    with pytest.raises(ZeroDivisionError):
        raise_panel_errors()


def test_drawing_keeps_to_four_a_second_and_a_fifth_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(workers.time, "monotonic", lambda: now)

    def count(cost: float) -> int:
        nonlocal now
        pace, drawn, end = Pace(), 0, now + 10

        def draw() -> None:
            nonlocal now
            now += cost

        while now < end:
            drawn += pace.draw(draw)
            now += 0.001
        return drawn

    assert count(0.0) in (40, 41)
    assert count(0.2) in (10, 11)


def test_progress_and_stop_reach_the_job():
    seen = []
    worker = Worker("one", lambda w: seen.append((w.state, w.share, w.text)))

    def work(job: Job) -> None:
        job.report(0.5, "half")
        job.report(7, "more than all")
        worker.stop()
        with pytest.raises(Stopped):
            job.check()

    worker.start(work)
    assert worker.wait(10)
    assert ("running", 0.5, "half") in seen
    assert ("running", 1.0, "more than all") in seen
