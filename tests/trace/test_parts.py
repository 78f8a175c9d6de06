"""Parts of a step: their totals and columns are made from their fields, in every place alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from golden.runs import GOLDEN, recorded
from hypothesis import given
from hypothesis import strategies as st
from made_traces import make_step, make_trace

import minserve
from minserve.trace import (
    RunTotals,
    RunTrace,
    Speculation,
    StageTimes,
    StepBlocks,
    StepTrace,
    StepWork,
    TraceFormatError,
)
from minserve.trace.parts import RoomParts
from minserve.trace.parts.totalling import Total
from minserve.trace.schema import STEPS
from minserve.trace.table import Column, Table
from minserve.trace.tally import Tally, totalled

BY_HAND = {
    "steps", "first_start_s", "last_end_s", "busy_s",
    "finished_requests", "finished_prompt_tokens", "finished_output_tokens",
}  # fmt: skip
"""Totals that are no sum or peak of one field of a step."""


def test_declared_totals_are_those_that_the_fields_of_a_step_name() -> None:
    rooms = {item.name for item in fields(RoomParts)}
    declared = {item.name for item in fields(RunTotals)} - BY_HAND - rooms
    named = [
        column.total.name or column.name
        for column in STEPS.columns
        if column.total is not None and column.part not in rooms
    ]
    assert sorted(named) == sorted(declared)


def test_totals_have_the_types_of_what_is_added() -> None:
    hints = get_type_hints(RunTotals)
    for place, column in totalled(STEPS.columns):
        if place in hints:
            assert hints[place] is column.kind, column.path


counts = st.integers(0, 1 << 40)


@given(st.lists(st.tuples(counts, counts, counts, counts, counts), max_size=8))
def test_sums_and_peaks_are_those_of_the_steps(values: list[tuple[int, ...]]) -> None:
    steps = [
        replace(
            make_step(index),
            num_running=a,
            kv_bytes_used=b,
            num_padded_rows=c,
            work=StepWork(linear_flops=d),
            blocks=StepBlocks(evicted_blocks=e, owned_bytes=a),
            speculation=Speculation(a, (b, c)[: a % 3], (d,)[: b % 2]),
        )
        for index, (a, b, c, d, e) in enumerate(values)
    ]
    tally = Tally()
    for step in steps:
        tally.add_step(step)
    totals = tally.totals()
    for place, column in totalled(STEPS.columns):
        if column.is_list:
            continue  # below
        found = [
            getattr(getattr(step, column.part) if column.part else step, column.name)
            for step in steps
        ]
        assert column.total is not None
        wanted = sum(found) if column.total.kind == "sum" else max(found, default=0)
        assert attrgetter(place.replace("__", "."))(totals) == pytest.approx(wanted), place
    lists = [(s.speculation.proposed_tokens, s.speculation.accepted_tokens) for s in steps]
    for index, total in enumerate((totals.speculation.proposed_tokens,
                                   totals.speculation.accepted_tokens)):  # fmt: skip
        values_of = [each[index] for each in lists]
        assert len(total) == max(map(len, values_of), default=0)
        for depth, summed in enumerate(total):
            assert summed == sum(each[depth] for each in values_of if depth < len(each))
    assert Tally(totals).totals() == totals


def test_a_step_is_frozen_and_has_no_room_for_other_attributes() -> None:
    step = make_step(0)
    assert not hasattr(step, "__dict__")
    with pytest.raises(AttributeError):
        step.index = 1  # type: ignore[misc]
    assert step == replace(step) != replace(step, num_running=99)
    assert {item.name for item in fields(step)} == set(StepTrace.__slots__)


def test_columns_are_those_of_recorded_traces_in_their_order() -> None:
    columns = recorded("tight")["trace"]["step_columns"]
    added = {
        "exported_blocks", "imported_blocks", "host_bytes",
        "num_drafts", "proposed_tokens", "accepted_tokens", "num_refused",
        "num_arrived", "interarrival_s", "num_prompt_tokens", "ttft_s", "itl_s", "itl_counts",
    }  # fmt: skip
    assert [name for name in STEPS.names if name not in added] == columns
    assert set(STEPS.names) == {*columns, *added}
    frame = make_trace().to_dataframe()
    assert list(frame) == [*STEPS.names, "duration_s", "num_tokens", "flops", "bytes"]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recorded_trace_of_version_3_is_written_again_with_the_same_numbers(name: str) -> None:
    old = recorded(name)["trace"]
    assert old["version"] == 3
    new = json.loads(RunTrace.from_json(json.dumps(old)).to_json())
    assert new.pop("version") == 4 and new.pop("cached_block_ids") == old.pop("cached_pages")
    assert old.pop("version") == 3 and new.keys() == old.keys()
    for rows, names in TABLES.items():
        now, was = new.pop(names), old.pop(names)
        places = [now.index(name) for name in was]
        for many, few in zip(*map(lists, (new.pop(rows), old.pop(rows))), strict=True):
            assert [many[place] for place in places] == few
            added = [many[place] for place in range(len(now)) if place not in places]
            assert not any(added), "what an old trace does not say is empty"
    assert new.pop("totals") == old.pop("totals") | {
        "exported_blocks": 0,
        "imported_blocks": 0,
        "peak_host_bytes": 0,
        "refused": 0,
        "prompt_tokens": 0,
        "arrived": 0,
        "speculation": {"num_drafts": 0, "proposed_tokens": [], "accepted_tokens": []},
    }
    assert new["header"].pop("asked") == {}, "what an old trace does not say is empty"
    assert new == old


TABLES = {"steps": "step_columns", "detail": "detail_columns", "requests": "request_columns"}


def lists(table: Any) -> list[list[Any]]:
    """The rows of a table, or of all the tables by step."""
    return [row for rows in table.values() for row in rows] if isinstance(table, dict) else table


@pytest.mark.parametrize(
    "column",
    [
        Column("proposed_tokens", "speculation", int, True, None),
        Column("proposed_tokens", "speculation", int, False, None),
    ],
)
def test_a_part_of_a_room_needs_defaults_and_totals(
    column: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minserve.trace.tally._ROOMS", {"speculation": object})
    with pytest.raises(TypeError, match=r"speculation\.proposed_tokens needs a default and a tot"):
        list(totalled((column,)))


def test_a_list_has_no_peak() -> None:
    column = Column("depths", "", tuple[int, ...], True, Total("peak", "depths"))
    with pytest.raises(TypeError, match="depths is a list: it can be summed"):
        list(totalled((column,)))


@pytest.mark.parametrize(
    "values", [["a"], [1.5], [True], [[1]], [10**30], {"0": 1}, 3, None], ids=repr
)
@pytest.mark.parametrize("where", ["steps", "totals"])
def test_a_damaged_list_is_refused_in_a_sentence(where: str, values: Any) -> None:
    trace = RunTrace()
    trace.append(replace(make_step(0), speculation=Speculation(1, (2, 1), (1,))))
    data = json.loads(trace.to_json())
    if where == "steps":
        data["steps"][0][data["step_columns"].index("proposed_tokens")] = values
    else:
        data["totals"]["speculation"]["proposed_tokens"] = values
    with pytest.raises(TraceFormatError):
        RunTrace.from_json(json.dumps(data))


def test_a_total_that_is_not_declared_is_refused() -> None:
    total = next(column.total for column in STEPS.columns if column.total is not None)
    column = Column("num_guesses", "", int, True, replace(total, name="guesses"))
    with pytest.raises(TypeError, match="num_guesses totals as guesses, a field that RunTotals"):
        list(totalled((column,)))


def test_two_columns_of_one_name_are_refused() -> None:
    @dataclass(frozen=True)
    class Guesses:
        stages: StageTimes
        schedule_s: float

    with pytest.raises(TypeError, match="two columns of the name schedule_s"):
        Table(Guesses)


PART = """
from dataclasses import dataclass, field

from minserve.trace.parts.totalling import peak, summed


@dataclass(frozen=True, slots=True)
class Guessing:
    guessed: int = field(default=0, metadata=summed())
    hit: int = field(default=0, metadata=summed())
    deepest: int = field(default=0, metadata=peak())
    by_depth: tuple[int, ...] = field(default=(), metadata=summed())

    @property
    def share(self) -> float:
        return self.hit / self.guessed
"""
USE = """
import sys
from dataclasses import replace
from pathlib import Path

from made_traces import make_step, make_trace
from minserve.trace import RunTrace
from minserve.trace.parts.guessing import Guessing

trace = RunTrace()
for index in range(3):
    part = Guessing(4, index, 2 + index % 2, (1,) * index)
    trace.append(replace(make_step(index), guessing=part))
assert trace.steps[2].guessing.share == 0.5
assert trace.totals.guessing == Guessing(12, 3, 3, (2, 1))
assert trace.totals.guessing.share == 0.25
again = RunTrace.from_json(trace.to_json())
assert again.snapshot() == trace.snapshot()
frame = trace.to_dataframe()
assert frame["hit"].tolist() == [0, 1, 2]
assert list(frame).index("guessed") == list(frame).index("accepted_tokens") + 1

old = RunTrace.from_json(Path(sys.argv[1]))
assert old.steps == make_trace().steps and old.steps[0].guessing == Guessing()
assert old.totals.guessing == Guessing()
trace.to_json(sys.argv[2])
"""


def test_a_new_part_is_a_file_and_a_line(tmp_path: Path) -> None:
    """A copy of the package with one more part totals it, writes it and reads it; it reads traces
    that were recorded before, and this package refuses the copy's traces in a sentence."""
    package, real = tmp_path / "minserve", Path(minserve.__file__).parent
    package.mkdir()
    for entry in real.iterdir():
        if entry.name != "trace":
            (package / entry.name).symlink_to(entry)
    shutil.copytree(real / "trace", package / "trace")
    registry = package / "trace" / "parts" / "__init__.py"
    (registry.parent / "guessing.py").write_text(PART)
    text = registry.read_text()
    imports = "from dataclasses import dataclass\n"
    line = "    guessing: Guessing = Guessing()\n"
    last = "    speculation: Speculation = NO_SPECULATION\n"
    assert text.count("\n" + imports) == 1 and text.endswith(last)
    imported = imports + "from minserve.trace.parts.guessing import Guessing\n"
    registry.write_text(text.replace("\n" + imports, "\n" + imported) + line)

    make_trace().to_json(tmp_path / "old.json")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", USE, "old.json", "new.json"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(TraceFormatError, match="unknown field 'guessing'"):
        RunTrace.from_json(tmp_path / "new.json")
