"""A trace from a stranger is a trace, or a sentence: no figure meets a wrong type later."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_traces import make_metrics, make_step, make_trace

from minserve.trace import RunTrace, StepBlocks, TraceFormatError
from minserve.trace.formats import reading
from minserve.trace.schema import KEYS, VERSION

JUNK: list[Any] = [
    None, True, "", "x", "<b>", -1, 0.5, 1e308, 10**400, [], [[]], {}, {"a": 1}, [1, "a"],
    math.nan, math.inf,
]  # fmt: skip
WHOLE = json.loads(make_trace(detail=True).to_json())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


PLACES = sorted(places(WHOLE), key=str)


def changed(at: tuple[Any, ...], junk: Any, remove: bool) -> str:
    data = json.loads(json.dumps(WHOLE))
    if not at:
        return json.dumps(junk)
    holder = data
    for key in at[:-1]:
        holder = holder[key]
    if remove:
        del holder[at[-1]]
    else:
        holder[at[-1]] = junk
    return json.dumps(data)


def use(text: str) -> bool:
    """Read and look at it as its readers do; whether it was a trace."""
    try:
        trace = RunTrace.from_json(text)
    except TraceFormatError as error:
        assert len(str(error)) < 1000
        return False
    again = trace.to_json()
    assert RunTrace.from_json(again).snapshot() == trace.snapshot()
    assert str(trace.summary()) and len(trace.to_dataframe()) == len(trace.steps)
    trace.requests_dataframe()
    for step in trace.steps:
        assert 0 <= step.duration_s < 1e25 and isinstance(step.num_rows, int)
        assert all(isinstance(token, int) for part in step.requests for token in part.new_token_ids)
    return True


def test_a_whole_trace_is_read() -> None:
    assert use(json.dumps(WHOLE))


@given(st.sampled_from(PLACES), st.sampled_from(JUNK), st.booleans())
@settings(max_examples=200, derandomize=True)
def test_any_change_is_a_trace_or_a_sentence(at: Any, junk: Any, remove: bool) -> None:
    text = changed(at, junk, remove)
    if text.lstrip().startswith("{"):
        use(text)


@pytest.mark.full
@given(st.sampled_from(PLACES), st.sampled_from(JUNK), st.booleans())
@settings(max_examples=5000, derandomize=True)
def test_very_many_changes_are_traces_or_sentences(at: Any, junk: Any, remove: bool) -> None:
    text = changed(at, junk, remove)
    if text.lstrip().startswith("{"):
        use(text)


@given(st.integers(0, len(json.dumps(WHOLE)) - 1))
@settings(max_examples=50, derandomize=True)
def test_a_trace_that_breaks_off_is_a_sentence(end: int) -> None:
    assert not use(json.dumps(WHOLE)[: max(1, end)])


@pytest.mark.parametrize(
    "text", ['{"a":' * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"schema": NaN}', "{}"],
    ids=["nested", "digits", "NaN", "empty"],
)  # fmt: skip
def test_what_is_no_trace_is_a_sentence(text: str) -> None:
    with pytest.raises(TraceFormatError):
        RunTrace.from_json(text)


def test_a_file_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "folder.json"
    folder.mkdir()
    damaged = tmp_path / "damaged.json.gz"
    damaged.write_bytes(gzip.compress(json.dumps(WHOLE).encode())[:-20])
    other = tmp_path / "other.json.gz"
    other.write_bytes(b"no gzip")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (folder, damaged, other, binary):
        with pytest.raises(TraceFormatError, match=path.name.split(".")[0]) as found:
            RunTrace.from_json(path)
        assert str(tmp_path) not in str(found.value)


@pytest.mark.parametrize("text", ["", " \n", "\ufeff"])
def test_an_empty_text_or_file_is_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match="not a trace: the text is empty"):
        RunTrace.from_json(text)
    path = tmp_path / "nothing.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceFormatError, match=r"not a trace: nothing\.json is empty"):
        RunTrace.from_json(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    text, path = "\ufeff" + json.dumps(WHOLE), tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    for source in (text, path):
        assert RunTrace.from_json(source).snapshot() == make_trace(detail=True).snapshot()


def test_a_small_file_does_not_become_a_large_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 1 << 16)
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b" " * (1 << 22)))
    with pytest.raises(TraceFormatError, match="more than 65,536 bytes"):
        RunTrace.from_json(bomb)


def without(data: dict[str, Any], table: str, names: set[str]) -> dict[str, Any]:
    """The trace without some columns of its table of steps or requests."""
    columns = data[f"{table}_columns"]
    kept = [place for place, name in enumerate(columns) if name not in names]
    rows = [[row[place] for place in kept] for row in data[f"{table}s"]]
    return data | {f"{table}_columns": [columns[place] for place in kept], f"{table}s": rows}


def test_columns_that_a_trace_is_too_old_to_have_get_their_defaults() -> None:
    data = without(WHOLE, "step", {"attention_s", "hit_tokens", "num_padded_rows"})
    data = without(data, "request", {"num_cached_tokens"})
    newer = {"attention_s", "padded_rows"}
    data["totals"] = {key: n for key, n in data["totals"].items() if key not in newer}
    step, made = RunTrace.from_json(json.dumps(data)).steps[1], make_step(1, detail=True)
    assert made.stages.attention_s and step.stages == dataclasses.replace(
        made.stages, attention_s=0.0
    )
    assert step.blocks == StepBlocks() and step.num_padded_rows == 0
    assert step.requests == made.requests and step.work == made.work
    whole_part = set(StepBlocks.__slots__)
    assert RunTrace.from_json(json.dumps(without(WHOLE, "step", whole_part))).steps[1] == made


def totals_with(**changes: Any) -> dict[str, Any]:
    return WHOLE | {"totals": WHOLE["totals"] | changes}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (without(WHOLE, "step", {"forward_s"}), r"its steps give forward_s = 0\.0, and its tot"),
        (without(WHOLE, "step", {"linear_flops"}), "its steps give linear_flops = 0, and its tota"),
        (totals_with(peak_running=3), "peak_running = 2, and its totals say 3"),
        (totals_with(busy_s=0.30001), "its steps give busy_s = 0.3"),
        (totals_with(first_start_s=None), r"first_start_s = 10\.0, and its totals say None"),
        (totals_with(steps=5), "its steps give steps = 6, and its totals say 5"),
        (totals_with(finished_requests=2), "requests give finished_requests = 3, and its totals s"),
        (totals_with(finished_output_tokens=32), "finished_output_tokens = 33, and its totals say"),
    ],
)
@pytest.mark.parametrize("version", [3, 4])
def test_totals_that_the_rows_do_not_add_up_to_are_refused(
    data: dict[str, Any], sentence: str, version: int
) -> None:
    if version == 3:
        data = {key: value for key, value in data.items() if key != "cached_block_ids"}
    with pytest.raises(TraceFormatError, match=f"contradicts itself: .*{sentence}"):
        RunTrace.from_json(json.dumps(data | {"version": version}))


def test_seconds_may_be_added_up_in_another_order() -> None:
    near = totals_with(busy_s=WHOLE["totals"]["busy_s"] * (1 + 1e-9))
    assert RunTrace.from_json(json.dumps(near)).totals.busy_s == near["totals"]["busy_s"]


def test_totals_also_count_rows_that_the_ring_dropped() -> None:
    trace = RunTrace(max_steps=2, max_requests=2)
    for index in range(5):
        trace.append(make_step(index))
        trace.finish_request(str(index), 0, make_metrics(index), "stop")
    assert RunTrace.from_json(trace.to_json()).snapshot() == trace.snapshot()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (without(WHOLE, "step", {"kv_tokens"}), "steps has no column 'kv_tokens'"),
        (without(WHOLE, "request", {"arrival_s"}), "requests has no column 'arrival_s'"),
        ({"request_columns": ["ttft_s"]}, "requests has the unknown column 'ttft_s': a newer"),
        ({"detail_columns": ["start", "start"]}, "detail has a column twice"),
        ({"step_columns": "index"}, "the columns of steps are not a list of names"),
        ({"step_columns": {"index": 1}}, "the columns of steps are not a list of names"),
        ({"totals": WHOLE["totals"] | {"guesses": 1}}, "totals has an unknown field 'guesses'"),
    ],
)
def test_columns_that_must_or_cannot_be_there_are_named(changes: Any, sentence: str) -> None:
    with pytest.raises(TraceFormatError, match=sentence):
        RunTrace.from_json(json.dumps(WHOLE | changes))


@pytest.mark.parametrize("version", [2, VERSION + 1, True, 4.0, "4", [], None])
def test_an_unknown_version_is_refused_with_the_known_ones(version: Any) -> None:
    with pytest.raises(
        TraceFormatError, match=rf"this minserve reads version 3 or {VERSION}: record"
    ):
        RunTrace.from_json(json.dumps(WHOLE | {"version": version}))


@pytest.mark.parametrize(
    ("version", "key", "origin"),
    [
        (3, "cached_block_ids", "a key of version 4"),
        (4, "cached_pages", "a key of version 3"),
        (4, "surprise", "a key of no version that is known here"),
        (3, "x" * 1000, "a key of no version that is known here"),
    ],
)
def test_a_key_of_another_version_is_refused(version: int, key: str, origin: str) -> None:
    own = "cached_pages" if version == 3 else "cached_block_ids"
    shared = {name: part for name, part in WHOLE.items() if name != "cached_block_ids"}
    for both in ({}, {own: {"1": [2]}}):
        text = json.dumps(shared | both | {"version": version, key: {"1": [2, 3]}})
        with pytest.raises(
            TraceFormatError, match=f"version {version}, but .*{key[:40]}.*{origin}"
        ):
            RunTrace.from_json(text)


def test_a_trace_is_written_with_the_keys_of_its_version() -> None:
    assert set(WHOLE) == set(KEYS[VERSION])


def test_an_older_version_is_brought_to_the_new_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    old = json.loads(json.dumps(WHOLE)) | {"version": VERSION - 2}
    old["totals"] = {"sum": {"counted": old["totals"]}}
    monkeypatch.setattr(reading, "KEYS", {VERSION - 2: tuple(old)})
    monkeypatch.setattr(reading, "UPGRADES", {
        VERSION - 2: lambda data: data | {"totals": data["totals"]["sum"]},
        VERSION - 1: lambda data: data | {"totals": data["totals"]["counted"]},
    })  # fmt: skip
    assert RunTrace.from_json(json.dumps(old)).snapshot() == make_trace(detail=True).snapshot()
    with pytest.raises(TraceFormatError, match=f"version {VERSION - 2} with a missing or unknown"):
        RunTrace.from_json(json.dumps(old | {"totals": {}}))
    with pytest.raises(
        TraceFormatError, match=f"version {VERSION - 2} or {VERSION - 1} or {VERSION}: rec"
    ):
        RunTrace.from_json(json.dumps(old | {"version": 0}))


def test_a_trace_from_before_the_asked_values_is_read():
    data = json.loads(make_trace().to_json())
    assert data["header"].pop("asked") == {}
    assert RunTrace.from_json(json.dumps(data)).header.asked == {}


def test_a_run_is_complete_when_no_request_is_left():
    trace = RunTrace()
    assert not trace.snapshot().is_complete
    trace.append(make_step(0))
    for left in ({"num_running": 1}, {"num_running": 0, "num_waiting": 2}):
        trace.append(dataclasses.replace(make_step(1), **{"num_waiting": 0, **left}))
        assert not trace.snapshot().is_complete
    trace.append(dataclasses.replace(make_step(2), num_running=0, num_waiting=0))
    assert trace.snapshot().is_complete
