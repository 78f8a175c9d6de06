"""Parts of a step: their totals and columns are made from their fields, in every place alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from golden.runs import GOLDEN, recorded
from hypothesis import given
from hypothesis import strategies as st
from made_traces import make_step, make_trace

import minserve
from minserve.trace import (
    RunTotals,
    RunTrace,
    StageTimes,
    StepBlocks,
    StepTrace,
    StepWork,
    TraceFormatError,
)
from minserve.trace.parts import RoomParts
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
        )
        for index, (a, b, c, d, e) in enumerate(values)
    ]
    tally = Tally()
    for step in steps:
        tally.add_step(step)
    totals = tally.totals()
    for place, column in totalled(STEPS.columns):
        found = [
            getattr(getattr(step, column.part) if column.part else step, column.name)
            for step in steps
        ]
        assert column.total is not None
        wanted = sum(found) if column.total.kind == "sum" else max(found, default=0)
        assert getattr(totals, place) == pytest.approx(wanted), place
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
    assert list(STEPS.names) == columns
    frame = make_trace().to_dataframe()
    assert list(frame) == [
        *columns, "duration_s", "num_tokens", "flops", "bytes"
    ]  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recorded_trace_of_version_3_is_written_again_with_the_same_numbers(name: str) -> None:
    old = recorded(name)["trace"]
    assert old["version"] == 3
    new = json.loads(RunTrace.from_json(json.dumps(old)).to_json())
    assert new.pop("version") == 4 and new.pop("cached_block_ids") == old.pop("cached_pages")
    assert new == {name: value for name, value in old.items() if name != "version"}


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
class Speculation:
    proposed_tokens: int = field(default=0, metadata=summed())
    accepted_tokens: int = field(default=0, metadata=summed())
    deepest: int = field(default=0, metadata=peak())

    @property
    def acceptance(self) -> float:
        return self.accepted_tokens / self.proposed_tokens
"""
USE = """
import sys
from dataclasses import replace
from pathlib import Path

from made_traces import make_step, make_trace
from minserve.trace import RunTrace
from minserve.trace.parts.speculation import Speculation

trace = RunTrace()
for index in range(3):
    trace.append(replace(make_step(index), speculation=Speculation(4, index, 2 + index % 2)))
assert trace.steps[2].speculation.acceptance == 0.5
assert trace.totals.speculation == Speculation(12, 3, 3)
assert trace.totals.speculation.acceptance == 0.25
again = RunTrace.from_json(trace.to_json())
assert again.snapshot() == trace.snapshot()
frame = trace.to_dataframe()
assert frame["accepted_tokens"].tolist() == [0, 1, 2]
assert list(frame).index("proposed_tokens") == list(frame).index("external_bytes") + 1

old = RunTrace.from_json(Path(sys.argv[1]))
assert old.steps == make_trace().steps and old.steps[0].speculation == Speculation()
assert old.totals.speculation == Speculation()
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
    (registry.parent / "speculation.py").write_text(PART)
    text = registry.read_text()
    imports = "from dataclasses import dataclass\n"
    line = "    speculation: Speculation = Speculation()\n"
    assert text.count("\n" + imports) == 1 and text.endswith("    __slots__ = ()\n")
    imported = imports + "from minserve.trace.parts.speculation import Speculation\n"
    registry.write_text(text.replace("\n" + imports, "\n" + imported) + line)

    make_trace().to_json(tmp_path / "old.json")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", USE, "old.json", "new.json"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(TraceFormatError, match="unknown field 'speculation'"):
        RunTrace.from_json(tmp_path / "new.json")
