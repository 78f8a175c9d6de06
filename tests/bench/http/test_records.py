"""The figures of a run: percentiles, goodput, how late the client was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minserve.bench.http.records import PlayResult, RequestRecord, peak_concurrency
from minserve.bench.metrics import Slo, pooled


def record(
    number: int,
    scheduled: float,
    first: float,
    gaps: list[float],
    late: float = 0.0,
    **more: object,
) -> RequestRecord:
    """A completed request with a token at `first` seconds after it was due, and after each gap."""
    times = list(np.cumsum([scheduled + first, *gaps]).tolist())
    options = {
        "sent_s": scheduled + late, "first_token_s": times[0], "ended_s": times[-1],
        "deliveries_s": times, "num_prompt_tokens": 10, "num_output_tokens": len(times),
        "status": "completed",
    } | more  # fmt: skip
    return RequestRecord(number, scheduled, scheduled, **options)  # type: ignore[arg-type]


def result(*records: RequestRecord, cpu_s: float = 0.1, total: int | None = None) -> PlayResult:
    ended = max((r.ended_s or 0.0 for r in records), default=1.0)
    count = len(records) if total is None else total
    return PlayResult(records, count, ended, cpu_s, None, 1.0)


times = st.floats(0.001, 50)


@given(
    st.lists(st.tuples(times, times, st.lists(times, max_size=6)), min_size=1, max_size=30),
    st.sampled_from([1.0, 50.0, 90.0, 99.0, 99.9]),
)
def test_percentiles_are_numpys(
    requests: list[tuple[float, float, list[float]]], percent: float
) -> None:
    played = result(*(record(n, *each) for n, each in enumerate(requests)))
    report = played.report(percentiles=(percent,))
    ttfts = [first for _, first, _ in requests]
    ends = [first + sum(gaps) for _, first, gaps in requests]
    tpots = [sum(gaps) / len(gaps) for _, _, gaps in requests if gaps]
    itls = [gap for _, _, gaps in requests for gap in gaps]
    for name, values in (("ttft", ttfts), ("e2el", ends), ("tpot", tpots), ("itl", itls)):
        told = report[f"p{percent:g}_{name}_ms"]
        if not values:
            assert told is None
            continue
        wanted = np.array(values) * 1e3
        assert told == pytest.approx(np.percentile(wanted, percent), rel=1e-6, abs=1e-6)
        assert report[f"mean_{name}_ms"] == pytest.approx(wanted.mean(), rel=1e-6)
        assert report[f"median_{name}_ms"] == pytest.approx(np.median(wanted), rel=1e-6)
    tokens = sum(1 + len(gaps) for _, _, gaps in requests)
    assert report["total_output_tokens"] == tokens
    assert report["output_throughput"] == pytest.approx(tokens / played.duration_s)


def test_goodput_counts_the_requests_that_met_the_whole_slo() -> None:
    good = record(0, 0.0, 0.1, [0.01] * 4)
    late = record(1, 0.0, 0.9, [0.01] * 4)
    slow = record(2, 0.0, 0.1, [0.2] * 4)
    refused = RequestRecord(3, 0.0, sent_s=0.0, ended_s=0.0, status="refused")
    played = result(good, late, slow, refused)
    slo = Slo(ttft_s=0.5, tpot_s=0.05)
    assert played.report(slo)["request_goodput"] == pytest.approx(1 / played.duration_s)
    assert played.report()["request_goodput"] is None
    report = played.report(slo)
    assert (report["completed"], report["failed"], report["refused"]) == (3, 1, 1)


def test_a_client_that_is_late_or_busy_says_so() -> None:
    punctual = result(*(record(n, n, 0.1, [0.1]) for n in range(5)))
    assert punctual.warnings == []
    late = result(*(record(n, n, 0.5, [0.1], late=0.2) for n in range(5)))
    assert any("200 ms after they were due" in warning for warning in late.warnings)
    report = late.report()
    assert report["client_late_p99_ms"] == pytest.approx(200.0)
    assert report["median_ttft_ms"] == pytest.approx(500.0), "its lateness is not taken off"
    assert report["median_ttft_from_send_ms"] == pytest.approx(300.0)
    slow = replace(punctual, lags_s=(0.001, 0.3, 0.3))
    assert any("up to 300 ms to react" in warning for warning in slow.warnings)
    assert slow.report()["client_lag_p99_ms"] == pytest.approx(300.0)
    busy = result(record(0, 0.0, 0.5, [0.5]), cpu_s=0.95)
    assert any("95% of the time" in warning for warning in busy.warnings)
    assert busy.report()["client_cpu_share"] == pytest.approx(0.95)


def test_tokens_that_the_client_had_to_guess_are_said_to_be_estimates() -> None:
    played = result(record(0, 0.0, 0.1, [0.1], is_estimated=True))
    assert any("estimates" in warning for warning in played.warnings)


def test_details_are_lists_by_request_in_vllms_names() -> None:
    played = result(record(0, 0.0, 0.1, [0.2, 0.3]), record(1, 1.0, 0.4, []))
    detailed = played.report(detailed=True)
    lists = played.report(detailed=True).keys() - played.report().keys()
    assert lists >= {
        "input_lens", "output_lens", "ttfts", "itls", "errors", "start_times", "generated_texts",
    }  # fmt: skip
    assert {len(detailed[name]) for name in lists} == {2}
    assert detailed["output_lens"] == [3, 1] and detailed["itls"][0] == pytest.approx([0.2, 0.3])


def test_a_data_frame_has_a_row_for_each_request() -> None:
    frame = result(
        record(0, 0.0, 0.1, [0.2, 0.3], late=0.05), RequestRecord(1, 2.0, status="refused")
    ).to_dataframe()
    assert list(frame["status"]) == ["completed", "refused"]
    assert frame["ttft_s"][0] == pytest.approx(0.1) and frame["tpot_s"][0] == pytest.approx(0.25)
    assert frame["late_s"][0] == pytest.approx(0.05) and list(frame["scheduled_s"]) == [0.0, 2.0]


def test_nothing_was_completed() -> None:
    lost = RequestRecord(0, 0.0, sent_s=0.0, ended_s=1.0, status="failed", error="gone")
    report = result(lost).report(Slo(ttft_s=1.0))
    assert report["completed"] == 0 and report["median_ttft_ms"] is None
    assert report["request_goodput"] == 0 and report["warnings"] == ["1 failed, the first: gone"]
    assert result().report()["client_late_p99_ms"] is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=20))
def test_most_requests_at_once(spans: list[tuple[int, int]]) -> None:
    records = [
        RequestRecord(n, start, sent_s=float(start), ended_s=float(start + length))
        for n, (start, length) in enumerate(spans)
    ]
    most = max((sum(a <= t < a + n for a, n in spans) for t in range(41)), default=0)
    assert peak_concurrency(records) == most


def test_runs_that_tell_only_lengths_are_pooled() -> None:
    one, two = result(record(0, 0.0, 0.1, [0.1])).run(), result(record(0, 0.0, 0.1, [])).run()
    both = pooled([one, two])
    assert both.num_requests == 2 and both.num_output_tokens == 3
    assert both.duration_s == pytest.approx(one.duration_s + two.duration_s)
