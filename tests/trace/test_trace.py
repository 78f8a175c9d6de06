"""RunTrace: the ring, the totals, the figures, and every way out."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_traces import make_metrics, make_step, make_trace

from minserve.trace import (
    RunTrace,
    TraceFormatError,
)
from minserve.trace.summary import distribution


@given(kept=st.integers(1, 7), appended=st.integers(0, 20))
def test_ring_keeps_the_newest_steps_and_totals_count_all(kept: int, appended: int) -> None:
    trace = RunTrace(max_steps=kept, max_requests=kept)
    for index in range(appended):
        trace.append(make_step(index))
        trace.finish_request(str(index), 0, make_metrics(index), "stop")
    newest = list(range(max(0, appended - kept), appended))
    assert [step.index for step in trace.steps] == newest
    assert [request.request_id for request in trace.requests] == [str(i) for i in newest]
    totals = trace.totals
    assert totals.steps == appended == totals.finished_requests
    assert totals.sampled_tokens == 2 * appended
    assert totals.linear_flops == sum(100 + index for index in range(appended))
    assert totals.preemptions == appended // 2
    if appended:
        assert totals.peak_kv_bytes_allocated == 2048 + appended - 1
        assert totals.duration_s == pytest.approx((appended - 1) * 0.1 + 0.05)


def test_since_gives_each_step_once_and_skips_what_fell_out() -> None:
    trace = RunTrace(max_steps=3)
    trace.append(make_step(0))
    first, position = trace.since(0)
    assert [step.index for step in first] == [0]
    assert trace.since(position) == ((), 1)
    for index in range(1, 8):
        trace.append(make_step(index))
    newer, position = trace.since(position)
    assert [step.index for step in newer] == [5, 6, 7]
    assert position == 8


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    trace = make_trace(detail=True)
    for source in (trace.to_json(), tmp_path / "trace.json", str(tmp_path / "trace.json.gz")):
        if not isinstance(source, str) or not source.startswith("{"):
            trace.to_json(source)
        again = RunTrace.from_json(source)
        assert again.snapshot() == trace.snapshot()
        assert (again.max_steps, again.max_requests) == (trace.max_steps, trace.max_requests)
        assert again.to_json() == trace.to_json()


def test_same_trace_gives_the_same_compressed_file(tmp_path: Path) -> None:
    trace = make_trace()
    for name in ("a.json.gz", "b.json.gz"):
        trace.to_json(tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_suffix_in_capitals_is_compressed_too(tmp_path: Path) -> None:
    path = tmp_path / "TRACE.JSON.GZ"
    make_trace().to_json(path)
    assert path.read_bytes().startswith(b"\x1f\x8b")
    assert RunTrace.from_json(path).snapshot() == make_trace().snapshot()


def test_threads_may_write_one_path_at_the_same_time(tmp_path: Path) -> None:
    trace, path = make_trace(steps=300), tmp_path / "trace.json"
    failed: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(10):
                trace.to_json(path)
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert RunTrace.from_json(path).snapshot() == trace.snapshot()
    assert list(tmp_path.iterdir()) == [path]


def test_a_trace_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(OSError, match=r"folder\.json"):
        make_trace().to_json(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_trace_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    make_trace().to_json(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_no_step_or_request_changes_nothing() -> None:
    trace = make_trace()
    before = trace.snapshot()
    with pytest.raises(TypeError, match="expected a StepTrace, got NoneType"):
        trace.append(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected RequestMetrics, got NoneType"):
        trace.finish_request("r", 0, None, "stop")  # type: ignore[arg-type]
    assert trace.snapshot() == before


def test_unreadable_traces_are_refused_with_a_sentence() -> None:
    data = json.loads(make_trace().to_json())
    cases = [
        (data | {"version": 99}, "reads version 3"),
        (data | {"schema": "other"}, "not a minserve trace"),
        (data | {"step_columns": [*data["step_columns"][:-1], "surprise"]}, "surprise"),
        ({key: value for key, value in data.items() if key != "totals"}, "totals"),
    ]
    for changed, sentence in cases:
        with pytest.raises(TraceFormatError, match=sentence):
            RunTrace.from_json(json.dumps(changed))
    with pytest.raises(TraceFormatError, match="breaks off"):
        RunTrace.from_json('{"schema": ')


def test_dataframes_have_a_row_per_step_and_per_request() -> None:
    trace = make_trace(detail=True)
    steps = trace.to_dataframe()
    assert len(steps) == 6
    assert steps["num_tokens"].tolist() == [7] * 6
    assert steps["bytes"].tolist() == [1090] * 6
    assert steps["flops"].tolist() == [110 + index for index in range(6)]
    assert steps.attrs["provenance"] == "measured"
    requests = trace.requests_dataframe()
    assert requests["ttft_s"].tolist() == pytest.approx([0.2, 0.21, 0.22])
    assert requests["tpot_s"].tolist() == pytest.approx([0.1, 0.102, 0.104])


def test_missing_pandas_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'minserve\[lab\]'"):
        make_trace().to_dataframe()


def test_summary_agrees_with_numpy() -> None:
    trace = make_trace(steps=6, requests=40, detail=True)
    summary = trace.summary()
    metrics = [make_metrics(number) for number in range(40)]
    for name, seconds in (("ttft_s", summary.ttft_s), ("tpot_s", summary.tpot_s)):
        values = np.array([getattr(item, name) for item in metrics])
        assert seconds is not None
        assert (seconds.mean, seconds.std) == pytest.approx((values.mean(), values.std()))
        for percent in (50, 90, 95, 99):
            assert getattr(seconds, f"p{percent}") == pytest.approx(np.percentile(values, percent))
    assert summary.itl_s is not None
    assert summary.itl_s.count == 10
    assert summary.itl_s.p50 == pytest.approx(0.1)
    assert summary.output_tokens == 12
    assert summary.output_tokens_per_s == pytest.approx(12 / 0.55)
    assert summary.mean_batch == 2
    assert summary.peak_kv_bytes == 2053
    assert "40 requests" in str(summary)
    assert "ITL median 100 ms" in str(summary)


def test_summary_of_an_empty_run_has_no_latencies() -> None:
    summary = RunTrace().summary()
    assert summary.ttft_s is summary.itl_s is None
    assert summary.output_tokens_per_s == 0
    assert str(summary)
    assert distribution([]) is None


@pytest.mark.parametrize("detail", [True, False])
def test_chrome_trace_has_nested_slices_counters_and_request_lanes(
    tmp_path: Path, detail: bool
) -> None:
    path = tmp_path / "trace.json"
    make_trace(detail=detail).to_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            key = (event["pid"], event["tid"])
            lanes.setdefault(key, []).append((event["ts"], event["ts"] + event["dur"]))
    assert set(lanes) == {(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)}
    for slices in lanes.values():
        # Slices of a lane must nest or follow each other, or viewers drop them.
        for begin, end in slices:
            for other_begin, other_end in slices:
                apart = end <= other_begin + 1e-3 or other_end <= begin + 1e-3
                nested = (begin >= other_begin - 1e-3 and end <= other_end + 1e-3) or (
                    other_begin >= begin - 1e-3 and other_end <= end + 1e-3
                )
                assert apart or nested
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {"KV bytes", "batch tokens", "requests"}


def test_readers_see_consistent_snapshots_while_the_engine_appends() -> None:
    trace = RunTrace(max_steps=50)
    steps = [make_step(index) for index in range(3000)]
    seen: list[str] = []

    def read() -> None:
        while trace.totals.steps < len(steps):
            snapshot = trace.snapshot()
            kept = [step.index for step in snapshot.steps]
            if kept != list(range(snapshot.totals.steps - len(kept), snapshot.totals.steps)):
                seen.append(f"{kept} after {snapshot.totals.steps} steps")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in steps:
        trace.append(step)
    for reader in readers:
        reader.join()
    assert not seen


def test_a_trace_keeps_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RunTrace(max_steps=0)
