"""When requests are sent, on virtual time: by schedule, by free clients, or by both."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from bench.http.virtual_loop import LoopClock, VirtualLoop, run_virtually
from hypothesis import given
from hypothesis import strategies as st

from minserve.bench.http.loops import Loop
from minserve.bench.http.records import PlayResult, RequestRecord, peak_concurrency


class Service:
    """A server that takes `seconds[number]` for each request."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds
        self.open = self.most_open = 0

    async def send(self, record: RequestRecord) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        now = asyncio.get_running_loop().time
        await asyncio.sleep(self.seconds[record.number])
        record.first_token_s = record.ended_s = now()
        record.status = "completed"
        self.open -= 1


def play(
    service: Service,
    gaps: list[float],
    rate: float = math.inf,
    clients: int | None = None,
    stop_s: float = math.inf,
) -> tuple[list[RequestRecord], float]:
    async def main() -> tuple[list[RequestRecord], float]:
        loop = Loop(gaps, service.send, LoopClock(), rate_per_s=rate, max_concurrency=clients)
        time = asyncio.get_running_loop().time
        duration_s = await loop.run(lambda: time() >= stop_s)
        return loop.records, duration_s

    return run_virtually(main())


def test_an_open_loop_sends_at_its_times_however_slow_the_server_is() -> None:
    service = Service([100.0] * 4)
    records, duration_s = play(service, [0.0, 1.0, 0.5, 2.0], rate=2.0)
    assert [record.scheduled_s for record in records] == [0.0, 0.5, 0.75, 1.75]
    assert [record.sent_s for record in records] == pytest.approx([0.0, 0.5, 0.75, 1.75])
    assert service.most_open == 4 == peak_concurrency(records)
    assert duration_s == pytest.approx(101.75)


def test_a_closed_loop_sends_when_a_client_is_free() -> None:
    service = Service([3.0, 1.0, 1.0, 1.0])
    records, duration_s = play(service, [9.0] * 4, clients=2)
    assert [record.sent_s for record in records] == pytest.approx([0.0, 0.0, 1.0, 2.0])
    assert all(record.scheduled_s == record.sent_s for record in records)
    assert service.most_open == 2 and duration_s == pytest.approx(3.0)


def test_a_scheduled_request_that_waits_for_a_client_keeps_its_time() -> None:
    """Otherwise its wait would be left out: coordinated omission."""
    service = Service([10.0, 10.0, 10.0])
    records, _ = play(service, [0.0, 1.0, 1.0], rate=1.0, clients=1)
    assert [record.scheduled_s for record in records] == [0.0, 1.0, 2.0]
    assert [record.sent_s for record in records] == pytest.approx([0.0, 10.0, 20.0])
    assert [record.metrics.ttft_s for record in records] == pytest.approx([10.0, 19.0, 28.0])
    assert [record.ttft_from_send_s for record in records] == pytest.approx([10.0] * 3)
    assert all(record.late_s == pytest.approx(0.0) for record in records), "not the client's fault"
    assert service.most_open == 1


def test_the_same_overload_looks_harmless_from_a_closed_loop() -> None:
    seconds = [1.0] * 40
    opened, _ = play(Service(seconds), [1.0] * 40, rate=1.2, clients=1)
    closed, _ = play(Service(seconds), [1.0] * 40, clients=1)
    assert max(record.metrics.ttft_s or 0.0 for record in closed) == pytest.approx(1.0)
    assert max(record.metrics.ttft_s or 0.0 for record in opened) > 6.0


def test_without_rate_and_clients_everything_is_due_at_the_start() -> None:
    service = Service([1.0] * 5)
    records, _ = play(service, [1.0] * 5)
    assert [record.scheduled_s for record in records] == [0.0] * 5 and service.most_open == 5


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=25),
    st.one_of(st.just(math.inf), st.floats(0.1, 50)),
    st.one_of(st.none(), st.integers(1, 6)),
    st.randoms(use_true_random=False),
)
def test_every_request_is_sent_once_after_its_time_and_within_the_limit(
    gaps: list[float], rate: float, clients: int | None, draw: random.Random
) -> None:
    service = Service([draw.uniform(0.0, 2.0) for _ in gaps])
    records, duration_s = play(service, gaps, rate, clients)
    assert sorted(record.number for record in records) == list(range(len(gaps)))
    due_s = 0.0
    for record in sorted(records, key=lambda record: record.number):
        due_s += gaps[record.number] / rate
        assert record.sent_s is not None and record.ended_s is not None
        if not math.isinf(rate) or clients is None:
            assert record.scheduled_s == pytest.approx(due_s)
        assert record.sent_s >= record.scheduled_s - 1e-9
        assert record.ended_s - record.sent_s == pytest.approx(service.seconds[record.number])
    assert service.most_open <= (clients or len(gaps))
    assert duration_s == pytest.approx(max(r.ended_s or 0.0 for r in records))


def test_a_stop_leaves_what_runs_as_interrupted_and_sends_nothing_more() -> None:
    service = Service([1.0, 50.0, 1.0, 1.0])
    records, duration_s = play(service, [0.0, 1.0, 1.0, 10.0], rate=1.0, stop_s=5.0)
    assert [record.status for record in records] == ["completed", "interrupted", "completed"]
    assert duration_s == pytest.approx(5.0, abs=0.2)
    result = PlayResult(tuple(records), 4, duration_s, 0.0, None, 1.0)
    assert not result.is_complete
    report = result.report()
    assert (report["completed"], report["interrupted"], report["not_sent"]) == (2, 1, 1)
    assert report["failed"] == 0 and not report["complete"]
    assert any(
        "1 requests were still running and 1 had not been sent" in w for w in result.warnings
    )


def test_a_client_that_is_busy_knows_how_late_it_reacts() -> None:
    """The loop's clock jumps while a request is handled, as if its handling took that long."""

    async def main() -> list[float]:
        running = asyncio.get_running_loop()
        assert isinstance(running, VirtualLoop)

        async def busy(record: RequestRecord) -> None:
            await asyncio.sleep(0.25)
            running.now_s += 0.7

        loop = Loop([0.0], busy, LoopClock())
        await loop.run()
        return loop.lags_s

    lags = run_virtually(main())
    assert max(lags) == pytest.approx(0.65) and sorted(lags)[-2] == pytest.approx(0.0)


def test_an_error_of_the_program_itself_is_raised() -> None:
    async def broken(record: RequestRecord) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await Loop([0.0], broken, LoopClock()).run()

    with pytest.raises(ExceptionGroup) as caught:
        run_virtually(main())
    assert caught.group_contains(ZeroDivisionError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s=0.0: expected a positive"),
        ({"rate_per_s": math.nan}, "rate_per_s=nan: expected a positive"),
        ({"max_concurrency": 0}, "max_concurrency=0: expected at least 1"),
    ],
)
def test_a_loop_that_makes_no_sense_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Loop([0.0], Service([]).send, LoopClock(), **options)  # type: ignore[arg-type]
